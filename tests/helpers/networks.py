"""The networks that tests go through."""

from __future__ import annotations

import pytest

from skipnets.models.registry import list_models

__all__ = ["EVERY_NETWORK"]

# Of 1,202 layers: seconds to build, and no other code.
_DEEPEST = "resnet1202"
EVERY_NETWORK = [
    pytest.param(name, marks=pytest.mark.slow) if name == _DEEPEST else name for name in list_models()
]
