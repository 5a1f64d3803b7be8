from __future__ import annotations

import threading
from typing import Any

import pytest

from skipnets.errors import UserError
from skipnets.training.copying import own_copy


def test_a_copy_shares_nothing() -> None:
    value: dict[str, Any] = {"a": [1]}
    copied = own_copy(value, "loss")
    copied["a"].append(2)
    assert value == {"a": [1]}


def test_what_cannot_be_copied_is_one_line() -> None:
    class Logged:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    with pytest.raises(
        UserError, match=r"^loss: must be something that copy.deepcopy can copy \(.*pickle.*\)$"
    ):
        own_copy(Logged(), "loss")
