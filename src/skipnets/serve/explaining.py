"""Grad-CAM maps as PNG files. Loads torch only for a classifier that runs in it."""

from __future__ import annotations

import io

from PIL import Image

from skipnets.classifier import Classifier
from skipnets.data.raster import WindowedImage
from skipnets.data.volume_files import Volume
from skipnets.errors import UserError, class_hint, install_command

__all__ = ["explanation_png", "why_unexplained"]

# Pixels of the longer side: smaller images show the map in blocks, larger ones only take time.
_SMALLEST, _LARGEST = 384, 1024


def why_unexplained(classifier: Classifier) -> str | None:
    """Why there are no Grad-CAM maps, and what turns them on; None where there are.

    They need the module in PyTorch, and the extra `explain`.
    """
    name = (
        "the native engine" if classifier.runtime.name == "native" else f"runtime {classifier.runtime.name}"
    )
    if classifier.export is not None:
        return f"{name} gives no gradients of an export; serve the model file with --runtime torch"
    if classifier.runtime.name != "torch":
        return f"{name} gives no gradients; --runtime torch does"
    try:
        import skipnets.insight.attribution
        import skipnets.insight.overlays  # noqa: F401
    except (UserError, ModuleNotFoundError):
        return f'the extra "explain" is not installed on the server; {install_command("explain")}'
    return None


def explanation_png(
    classifier: Classifier, image: Image.Image | WindowedImage | Volume, label: str | None
) -> bytes:
    """An image with its Grad-CAM map as an overlay.

    Args:
        classifier: One for which `why_unexplained` is None.
        image: From the classifier's `Preprocessing.open`, or of a signal or a volume `open_volume`.
        label: The class to explain; None takes the most probable class or label.

    Raises:
        UserError: If there is no such class.
    """
    from skipnets.insight import explain, overlay

    if label is not None and label not in classifier.classes:
        raise UserError(f"label={label}: {class_hint(label, classifier.classes)}")
    [[explanation, *_]] = explain(classifier, [image], classes=None if label is None else [label])
    scale = _scale_for_a_screen(explanation.image)
    file = io.BytesIO()
    overlay(explanation.resized(scale)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _scale_for_a_screen(image: Image.Image) -> float:
    """The factor to a size that is large enough to show the map and fits a screen."""
    longer = max(image.size)
    if longer < _SMALLEST:
        return -(-_SMALLEST // longer)  # by whole steps, so that pixels stay equally large
    return min(_LARGEST / longer, 1)
