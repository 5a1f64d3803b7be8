"""Limits that can be kept."""

from __future__ import annotations

import math
from typing import Any

import pytest

from skipnets.errors import UserError
from skipnets.serve import Limits


@pytest.mark.parametrize(
    "limits",
    [
        *({"files": 0}, {"seconds": -1}, {"pixels": 0}, {"files": 300}, {"queue": 3}),
        *({name: value} for name in ("seconds", "memory") for value in (math.inf, math.nan)),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"=\S+: must be (a finite number above 0|at least files=)"):
        Limits(**limits)
