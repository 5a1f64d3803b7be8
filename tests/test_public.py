"""The names that packages promise, against what is there; and what `import skipnets` costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.helpers.classifiers import make_classifier, make_images, some_image

import skipnets
from skipnets.errors import UserError, missing_extra

PACKAGES = [
    "skipnets",
    *(module.name for module in pkgutil.walk_packages(skipnets.__path__, "skipnets.") if module.ispkg),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_declared_names_are_there_and_names_that_are_there_are_declared(name: str) -> None:
    package = importlib.import_module(name)
    declared = getattr(package, "__all__", [])
    assert declared == sorted(declared, key=lambda exported: (not exported.isupper(), exported))
    assert all(getattr(package, exported) is not None for exported in declared)
    assert {exported for exported in dir(package) if _is_export(package, exported)} == set(declared)


def _is_export(package: ModuleType, name: str) -> bool:
    """Whether a name is the package's own: neither private, nor a module, nor imported from a library."""
    if name == "__version__":
        return True
    value = getattr(package, name)
    if name.startswith("_") or (isinstance(value, ModuleType) and package is not skipnets):
        return False
    defined_in = getattr(value, "__module__", None)
    return name.isupper() or isinstance(value, ModuleType) or str(defined_in).startswith(package.__name__)


def test_names_lead_home() -> None:
    from skipnets.classifier import Classifier
    from skipnets.data import Preprocessing
    from skipnets.models import create_model

    assert skipnets.Classifier is Classifier
    assert skipnets.Preprocessing is Preprocessing
    assert skipnets.create_model is create_model
    assert skipnets.__version__ == version("skipnets")


@pytest.mark.parametrize(
    "name", ["data", "deploy", "evaluation", "insight", "models", "report", "runtimes", "serve", "training"]
)
def test_packages_are_reached_without_importing_them(name: str) -> None:
    script = f"import skipnets; package = skipnets.{name}; assert package.__all__ and dir(package)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_operations_are_reached_without_importing_them() -> None:
    script = "import skipnets; assert skipnets.ops.dense_block.dense_block is not None and dir(skipnets.ops)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_public_name_is_that_of_a_module_beside_it() -> None:
    """`from skipnets.insight import overlay` would give a function or a module, as the case may be."""
    for name in PACKAGES[1:]:
        package = importlib.import_module(name)
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(getattr(package, "__all__", ())), name


def _functions() -> dict[str, Any]:
    """The functions among the public names of all packages, each once."""
    exported = (
        getattr(package, name)
        for package in map(importlib.import_module, PACKAGES)
        for name in getattr(package, "__all__", ())
    )
    return {f"{each.__module__}.{each.__name__}": each for each in exported if inspect.isfunction(each)}


@pytest.mark.parametrize("function", _functions().values(), ids=_functions())
def test_functions_share_one_convention(function: Any) -> None:
    """At most two arguments by position, the same names everywhere, and a path wherever a classifier does."""
    parameters = inspect.signature(function).parameters
    assert sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters.values()) <= 2
    assert not any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
    assert not set(parameters) & {"batch", "batches", "classifier", "num_workers"}
    first = next(iter(parameters.values()), None)
    # A model to `skipnets.models` is a module, and to be had without a file.
    if (
        first is not None
        and first.name in ("model", "source", "sources")
        and ".models." not in function.__module__
    ):
        assert "Source" in first.annotation or {"PathLike", "Classifier"} <= set(
            first.annotation.replace("[", ".").replace("]", ".").replace(" ", ".").split(".")
        )


def test_a_path_does_where_a_classifier_does(tmp_path: Path) -> None:
    classifier = make_classifier("resnet20")
    classifier.save(path := tmp_path / "model.safetensors")
    images, image = make_images(classifier, 20, wrong=2), some_image()
    for function, arguments in (
        (skipnets.evaluation.evaluate, {"data": images, "split": "val"}),
        (skipnets.evaluation.calibrate, {"data": images, "split": "val"}),
    ):
        of_path, of_classifier = function(path, **arguments), function(classifier, **arguments)
        differing = {"classifier", "created"}
        assert _values(of_path, differing) == pytest.approx(_values(of_classifier, differing), rel=1e-4)
    [[of_path]], [[of_classifier]] = (skipnets.insight.explain(each, [image]) for each in (path, classifier))
    np.testing.assert_allclose(of_path.grid, of_classifier.grid, rtol=1e-4, atol=1e-6)
    rows = [list(skipnets.insight.reuse(each, [image]).rows()) for each in (path, classifier)]
    assert rows[0] == rows[1]
    summaries = [skipnets.insight.summarize(each) for each in (path, classifier)]
    assert summaries[0].totals == summaries[1].totals


def _values(result: Any, without: set[str]) -> dict[str, float]:
    return {
        name: value
        for name, value in result.to_dict().items()
        if name not in without and isinstance(value, float)
    }


def test_a_run_does_where_its_folder_does(tmp_path: Path) -> None:
    make_classifier("resnet20").save(tmp_path / "model.safetensors")
    run = skipnets.training.Run(tmp_path)
    assert skipnets.load(run).path == run.model
    assert skipnets.insight.summarize(run).name == "resnet20"
    with pytest.raises(UserError, match="is not a run folder"):
        skipnets.report.write_report(run)
    with pytest.raises(UserError, match="runs: must name at least two, not 1"):
        skipnets.report.compare([run])


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'crate_model'"):
        _ = skipnets.crate_model  # type: ignore[attr-defined]


def test_importing_costs_nothing() -> None:
    script = """
import sys
before = set(sys.modules)
import skipnets
skipnets.__version__
added = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = added & {"torch", "torchvision", "numpy", "PIL", "rich", "safetensors", "pydantic", "matplotlib"}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_torch_create_model_says_what_to_install() -> None:
    script = """
import sys
sys.modules["torch"] = None
import skipnets
assert "resnet18" in skipnets.list_models()
try:
    skipnets.create_model
except skipnets.errors.UserError as error:
    print(error)
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == f"{missing_extra('train')}\n"
