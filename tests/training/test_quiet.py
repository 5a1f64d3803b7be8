"""Lightning's advice is kept from users, and everything else is let through."""

from __future__ import annotations

import logging
import warnings

import pytest
import rich

from skipnets.training.quiet import quiet_lightning

LOGGERS = ("pytorch_lightning", "lightning_fabric")


def test_advice_is_hushed_and_real_warnings_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_lightning():
            warnings.warn("The 'train_dataloader' does not have many workers which may be a", stacklevel=1)
            warnings.warn("the loss is not finite", stacklevel=1)
        warnings.warn("The 'train_dataloader' does not have many workers which may be a", stacklevel=1)
    assert [str(warning.message)[:12] for warning in caught] == ["the loss is ", "The 'train_d"]


def interrupted() -> None:
    with quiet_lightning():
        assert rich.get_console().stderr
        assert all(logging.getLogger(name).level == logging.ERROR for name in LOGGERS)
        raise KeyboardInterrupt


def test_loggers_and_console_are_as_before_even_after_ctrl_c() -> None:
    levels = [logging.getLogger(name).level for name in LOGGERS]
    console = rich.get_console()
    stderr = console.stderr
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [logging.getLogger(name).level for name in LOGGERS] == levels
    assert rich.get_console() is console
    assert console.stderr is stderr
