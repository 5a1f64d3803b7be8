"""Where a classifier looked, as a file for a page. Loads torch only for a classifier that runs in it."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from skipnets.classifier import Classifier
from skipnets.errors import UserError

if TYPE_CHECKING:
    from skipnets.insight import Explanation

__all__ = ["can_explain", "explanation_png"]

# Of a picture's longer side: smaller ones would show the map in blocks, larger ones only take time.
_SMALLEST, _LARGEST = 384, 1024


def can_explain(classifier: Classifier) -> bool:
    """Whether it runs in torch as a module, and the libraries of the extra are here."""
    if classifier.export is not None or classifier.runtime.name != "torch":
        return False
    try:
        import skipnets.insight.attribution
        import skipnets.insight.overlays  # noqa: F401
    except (UserError, ModuleNotFoundError):
        return False
    return True


def explanation_png(classifier: Classifier, picture: Image.Image, label: str | None) -> bytes:
    """Grad-CAM laid over a picture.

    Args:
        classifier: For which `can_explain` holds.
        picture: Upright, with the network's channels.
        label: What to explain; None takes the most probable class.

    Raises:
        UserError: If there is no such class.
    """
    from skipnets.insight import explain, overlay

    [[explanation]] = explain(classifier, [picture], classes=None if label is None else [label])
    file = io.BytesIO()
    overlay(_for_a_screen(explanation)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _for_a_screen(explanation: Explanation) -> Explanation:
    """The same of a picture that is large enough to show the map, and no larger than a screen."""
    picture = explanation.picture
    longer = max(picture.size)
    if longer < _SMALLEST:
        scale = float(-(-_SMALLEST // longer))  # by whole steps, so that pixels stay sharp
    elif longer > _LARGEST:
        scale = _LARGEST / longer
    else:
        return explanation
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    x, y = size[0] / picture.width, size[1] / picture.height
    left, top, right, bottom = explanation.box
    return replace(
        explanation, picture=picture.resize(size, resampling), box=(left * x, top * y, right * x, bottom * y)
    )
