"""Limits that can be kept."""

from __future__ import annotations

import pytest

from skipnets.errors import UserError
from skipnets.serve import Limits


@pytest.mark.parametrize(
    "limits", [{"files": 0}, {"seconds": -1}, {"pixels": 0}, {"files": 300}, {"queue": 3}]
)
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"=\S+: must be "):
        Limits(**limits)
