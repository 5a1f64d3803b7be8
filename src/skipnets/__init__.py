"""Image classification with networks built on skip connections.

    import skipnets

    classifier = skipnets.load("runs/cats")
    classifier.predict(["a.jpg"])

Importing this loads nothing heavy: each name below, and each room (`skipnets.training`, ...), is fetched
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipnets import classifier as classifier
    from skipnets import data as data
    from skipnets import deploy as deploy
    from skipnets import evaluation as evaluation
    from skipnets import models as models
    from skipnets import runtimes as runtimes
    from skipnets import serve as serve
    from skipnets import training as training
    from skipnets.classifier import Classifier, load
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.models.factory import create_model
    from skipnets.models.registry import list_models

    __version__: str

__all__ = ["Classifier", "Preprocessing", "__version__", "create_model", "list_models", "load"]

_HOMES = {
    "Classifier": "skipnets.classifier",
    "Preprocessing": "skipnets.data.preprocessing",
    "create_model": "skipnets.models.factory",
    "list_models": "skipnets.models.registry",
    "load": "skipnets.classifier",
}
_PACKAGES = ("classifier", "data", "deploy", "evaluation", "models", "runtimes", "serve", "training")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("skipnets")
    elif name in _HOMES:
        value = getattr(_import(_HOMES[name]), name)
    elif name in _PACKAGES:
        return _import(f"skipnets.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


def _import(module: str) -> Any:
    """The module, or the one line that says how to install torch where that is what it needs."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "torchvision"):
            from skipnets.errors import missing_extra

            raise missing_extra("train") from error
        raise
