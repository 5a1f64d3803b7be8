"""What inputs of one, two and three spatial axes are called."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["AXES", "INPUTS", "SIDES"]

# Spatial axes → their letters in a shape, what inputs with so many are called, and what their sides are.
AXES: Mapping[int, str] = {1: "L", 2: "H, W", 3: "D, H, W"}
INPUTS: Mapping[int, str] = {1: "signals", 2: "images", 3: "volumes"}
SIDES: Mapping[int, str] = {1: "length", 2: "height and width", 3: "depth, height and width"}
