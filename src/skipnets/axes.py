"""What inputs of one, two and three spatial axes are called."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["AXES", "INPUTS", "SIDES", "worded"]

# Spatial axes → their letters in a shape, what inputs with so many are called, and what their sides are.
AXES: Mapping[int, str] = {1: "L", 2: "H, W", 3: "D, H, W"}
INPUTS: Mapping[int, str] = {1: "signals", 2: "images", 3: "volumes"}
SIDES: Mapping[int, str] = {1: "length", 2: "height and width", 3: "depth, height and width"}


def worded(text: str, dims: int) -> str:
    """A text of ours about images as one about signals or volumes, where inputs are these.

    Args:
        text: Without names of files or classes, which might hold the word, too.
        dims: Spatial axes of the inputs.

    Examples:
        >>> worded("an image of 12 images", 3)
        'a volume of 12 volumes'
        >>> worded("fewer than images", 1)
        'fewer than signals'
        >>> worded("Images a second", 3)
        'Volumes a second'
    """
    if dims == 2:
        return text
    noun = INPUTS[dims].removesuffix("s")
    text = re.sub(r"\b([Aa])n (?=image\b)", r"\1 ", text)
    text = re.sub(r"\bimage(s?)\b", rf"{noun}\1", text)
    return re.sub(r"\bImage(s?)\b", rf"{noun.capitalize()}\1", text)
