"""The names that `import skipnets` promises, and what they cost."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version

import pytest

import skipnets


def test_exported_names() -> None:
    assert skipnets.__all__ == [
        "Classifier",
        "Preprocessing",
        "__version__",
        "create_model",
        "list_models",
        "load",
    ]
    assert sorted(skipnets.__all__) == skipnets.__all__
    assert set(skipnets.__all__) <= set(dir(skipnets))
    assert all(getattr(skipnets, name) is not None for name in skipnets.__all__)
    assert skipnets.__version__ == version("skipnets")


def test_names_lead_home() -> None:
    from skipnets.classifier import Classifier
    from skipnets.data import Preprocessing
    from skipnets.models import create_model

    assert skipnets.Classifier is Classifier
    assert skipnets.Preprocessing is Preprocessing
    assert skipnets.create_model is create_model


def test_rooms_are_reached_without_importing_them() -> None:
    script = (
        "import skipnets; skipnets.evaluation.write_table; skipnets.models.list_models; skipnets.runtimes"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_public_name_is_that_of_a_module_beside_it() -> None:
    """`from skipnets.insight import overlay` would give a function or a module, as the case may be."""
    for package in pkgutil.iter_modules(skipnets.__path__):
        if package.ispkg:
            room = importlib.import_module(f"skipnets.{package.name}")
            modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
            assert not modules & set(getattr(room, "__all__", ())), package.name


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
    assert 'pip install "skipnets[train]"' in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
