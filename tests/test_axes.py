"""The words for inputs of one, two and three axes."""

from __future__ import annotations

from skipnets.axes import AXES, INPUTS, SIDES


def test_each_number_of_axes_has_its_words() -> None:
    for dims in (1, 2, 3):
        assert len(AXES[dims].split(", ")) == dims
        assert len(SIDES[dims].replace(" and ", ", ").split(", ")) == dims
    assert list(INPUTS) == list(AXES) == list(SIDES) == [1, 2, 3]
