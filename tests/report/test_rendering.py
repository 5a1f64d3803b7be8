"""Templates escape what they are given, and numbers are told in one way."""

from __future__ import annotations

import math

import jinja2
import pytest

from skipnets.report.rendering import area, decimal, render, share


def test_numbers() -> None:
    assert share(0.1234) == "12.3%"
    assert share(0.1234, 0) == "12%"
    assert decimal(2) == "2.000"
    assert area(0.98765) == "0.9877"
    assert {share(math.nan), decimal(None), area(math.inf)} == {"–"}


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("audit.html.jinja")
