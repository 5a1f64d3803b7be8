"""The names that packages promise, against what is there; and what `import skipnets` costs."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from types import ModuleType

import pytest

import skipnets
from skipnets.errors import missing_extra

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
