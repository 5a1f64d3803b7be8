"""The chart of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from tests.helpers.runs import row

from skipnets.training.config import TrainConfig
from skipnets.training.curves import PAPER, draw_curves, loss_note, plot_measure


def test_curves_are_drawn_from_the_first_epoch_on(tmp_path: Path) -> None:
    for count in (1, 12):
        path = tmp_path / f"{count}.png"
        draw_curves([row(epoch) for epoch in range(1, count + 1)], count, path, title="a model on a data set")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_epochs_are_whole_numbers_even_where_there_is_one() -> None:
    axes = Figure().add_subplot()
    plot_measure(axes, [row(1)], "gradient_norm", PAPER)
    assert list(axes.get_xticks()) == [1]


def test_the_note_names_what_raises_the_training_loss(tmp_path: Path) -> None:
    plain = TrainConfig(data="digits", out=tmp_path, augmentation="none", label_smoothing=0.0, mixup=0.0)
    assert loss_note(plain) == ""
    noted = loss_note(replace(plain, label_smoothing=0.1, mixup=0.2, augmentation="crop"))
    assert "includes label smoothing 0.1, MixUp and augmented images (crop); " in noted
    for rate in ("drop_rate", "proj_drop_rate", "drop_path_rate"):
        assert "dropout" in loss_note(replace(plain, model_options={rate: 0.2}))
