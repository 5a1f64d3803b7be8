"""The display of a training in a notebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import IPython.display
import pytest
from tests.helpers.own_networks import TinyNet

from skipnets.tables import as_html, as_text, make_table
from skipnets.training import TrainConfig, train, trainer
from skipnets.training.notebook_progress import epochs_table
from skipnets.training.run import Row

MakeConfig = Callable[..., TrainConfig]


class Display:
    """Stands for IPython's display of one output cell."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, html: Any, *, display_id: bool) -> Display:
        assert display_id
        assert not self.shown
        self.update(html)
        return self

    def update(self, html: Any) -> None:
        self.shown.append(html.data)


def test_a_training_is_shown_in_one_place(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display()
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(trainer, "in_notebook", lambda: True)
    run = train(tiny(model=None, model_options={}, epochs=2), model=TinyNet)
    last = display.shown[-1]
    assert re.match(r'<progress max="12" value="12" .*> epoch 2 of 2, step 6 of 6<', last)
    for row in run.rows:
        assert f"{row.val_loss:.4f}" in last
    assert last.count("best") == 1
    first = display.shown[0]
    assert "value=" in first
    assert "best" not in first
    assert "epoch 1/2" not in capsys.readouterr().err  # no line beside it


@pytest.mark.parametrize("render", [as_text, as_html])
def test_tables_are_not_shown_beside_the_output_that_they_are_for(
    render: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown: list[Any] = []
    monkeypatch.setattr("rich.jupyter.display", lambda *output: shown.append(output))
    assert "epoch" in render([make_table({"epoch": "left"}, [["1"]])])
    assert not shown


@pytest.mark.parametrize(
    ("scores", "heading", "shown"),
    [
        ({"val_accuracy": 0.5}, "val accuracy", "50.00%"),
        ({"val_accuracy": 0.5, "val_average_precision": 0.25}, "val mAP", "0.25"),
        ({"val_accuracy": None, "val_mae": 3.25}, "val MAE", "3.25"),
    ],
)
def test_the_table_has_the_metric_of_the_task(
    scores: dict[str, float | None], heading: str, shown: str
) -> None:
    rows = [
        Row(
            epoch=number,
            lr=0.1,
            train_loss=1,
            val_loss=2,
            val_balanced_accuracy=None,
            seconds=1,
            validation_seconds=1,
            **scores,  # type: ignore[arg-type]
        )
        for number in range(1, 41)
    ]
    lines = as_text([epochs_table(rows, 39)]).splitlines()
    assert heading in lines[0]
    assert all(shown in line for line in lines[1:])
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(26, 41))
    assert [line.endswith("best") for line in lines[1:]].index(True) == 13
