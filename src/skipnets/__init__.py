"""Image classification with networks built on skip connections.

    import skipnets

    classifier = skipnets.load("runs/cats")
    classifier.predict("a.jpg")

Importing it is fast: each name below, and each package (`skipnets.training`, ...), is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skipnets.lazy import lazy_exports

if TYPE_CHECKING:
    from skipnets import data, deploy, evaluation, insight, models, ops, report, runtimes, serve, training
    from skipnets.classifier import Classifier, load
    from skipnets.data.preprocessing import Preprocessing
    from skipnets.models.factory import create_model
    from skipnets.models.registry import list_models
    from skipnets.version import __version__

__all__ = [
    "Classifier",
    "Preprocessing",
    "__version__",
    "create_model",
    "data",
    "deploy",
    "evaluation",
    "insight",
    "list_models",
    "load",
    "models",
    "ops",
    "report",
    "runtimes",
    "serve",
    "training",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Classifier": "classifier",
        "Preprocessing": "data.preprocessing",
        "__version__": "version",
        "create_model": "models.factory",
        "list_models": "models.registry",
        "load": "classifier",
    },
    submodules=(
        "data",
        "deploy",
        "evaluation",
        "insight",
        "models",
        "ops",
        "report",
        "runtimes",
        "serve",
        "training",
    ),
)
