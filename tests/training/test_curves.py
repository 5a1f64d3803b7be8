"""The chart of a training."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.runs import row

from skipnets.training.curves import draw_curves


def test_curves_are_drawn_from_the_first_epoch_on(tmp_path: Path) -> None:
    for count in (1, 12):
        path = tmp_path / f"{count}.png"
        draw_curves([row(epoch) for epoch in range(1, count + 1)], count, path, title="a model on a data set")
        assert path.read_bytes().startswith(b"\x89PNG")
