"""Parts of a training by an import, as a program would hand them over."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from skipnets.cli import main
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import TrainConfig, read_config, train, tune
from skipnets.training.components import with_components
from skipnets.training.supplied import Supplied

HERE = "tests.training.test_components"
EPOCHS: list[int] = []


class Epochs(pl.Callback):
    """Counts epochs."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        EPOCHS.append(trainer.current_epoch)


def parts() -> dict[str, Any]:
    """What a program hands over."""
    return {
        "loss": nn.MultiMarginLoss(),
        "metrics": {"f1": MulticlassF1Score(3)},
        "callbacks": [Epochs()],
        "logger": None,
    }


def wrong_names() -> dict[str, Any]:
    return {"losses": nn.MultiMarginLoss()}


def wrong_type() -> list[int]:
    return [1]


def unfit() -> dict[str, Any]:
    """A loss of other labels."""
    return {"loss": nn.BCEWithLogitsLoss()}


def failing() -> None:
    raise RuntimeError("no such\nweights")


@pytest.mark.slow
def test_a_command_trains_resumes_and_repeats_with_them(
    digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--model densenet_bc40_k12 --model-options.block-config [1] --batch-size 32 --workers 0"
    options += " --epochs 1 --augmentation none --accelerator cpu --block-execution plain"
    run = tmp_path / "run"
    EPOCHS.clear()
    typed = [
        "train",
        str(digits_folder),
        *options.split(),
        "--components",
        f"{HERE}:parts",
        "--out",
        str(run),
    ]
    assert main(typed) == 0
    assert EPOCHS == [0]
    config = read_config(run / "run.yaml")
    assert (config.components, config.supplied) == (f"{HERE}:parts", ())
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["val_f1"]) <= 1
    assert 0.2 < float(row["train_loss"]) < 0.9  # a margin of 1 for two of three classes; log 3 is 1.1
    capsys.readouterr()
    resumed = ["train", "--resume", str(run), "--epochs", "2"]
    assert main(resumed) == 2  # a file does not make anything run
    assert f"take trust='{HERE}:parts' (--trust {HERE}:parts)" in capsys.readouterr().err
    assert main([*resumed, "--trust", f"{HERE}:parts"]) == 0
    assert EPOCHS == [0, 1]


OPTIONS = [
    *("--model", "densenet_bc40_k12", "--model-options.block-config", "[1]", "--batch-size", "32"),
    *("--workers", "0", "--epochs", "1", "--augmentation", "none", "--accelerator", "cpu"),
    *("--block-execution", "plain", "--logger", "csv"),
]


def rows(run: Path) -> list[dict[str, str]]:
    """Of a run's metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_fold_is_trained_with_them(
    digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, own = tmp_path / "run", ["--components", f"{HERE}:parts"]
    EPOCHS.clear()
    assert main(["train", str(digits_folder), *OPTIONS, *own, "--folds", "2", "--out", str(run)]) == 0
    resumed = ["train", "--resume", str(run), "--epochs", "2"]
    assert main(resumed) == 2
    assert f"--trust {HERE}:parts" in capsys.readouterr().err
    assert main([*resumed, "--trust", f"{HERE}:parts"]) == 0
    assert EPOCHS == [0, 0, 1, 1]
    for fold in (run / "fold-1", run / "fold-2"):
        found = rows(fold)
        assert all(0 <= float(row["val_f1"]) <= 1 for row in found)
        assert all(0.2 < float(row["train_loss"]) < 0.9 for row in found)  # see above
        recorded = read_model_file(fold / "model.safetensors").metadata["provenance"]["scores"]
        assert 0 <= recorded["test_f1"] <= 1
    capsys.readouterr()
    own = ["--components", f"{HERE}:images", "--folds", "2", "--out", str(tmp_path / "images")]
    assert main(["train", str(digits_folder), *own]) == 2
    assert "dataset: must be given without folds" in capsys.readouterr().err


@pytest.mark.slow
def test_every_trial_of_a_tuning_is_trained_with_them(
    digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "tuned", ["--components", f"{HERE}:parts"]
    options = ["--time", "60s", "--trials", "2", "--out", str(out)]
    EPOCHS.clear()
    assert main(["tune", str(digits_folder), *OPTIONS, *own, *options]) == 0
    assert f"run.yaml --trust {HERE}:parts" in " ".join(capsys.readouterr().out.split())
    resumed = ["tune", "--resume", str(out), "--trials", "3"]
    assert main(resumed) == 2
    assert f"--trust {HERE}:parts" in capsys.readouterr().err
    assert main([*resumed, "--trust", f"{HERE}:parts"]) == 0
    assert EPOCHS == [0, 0, 0]
    for trial in sorted(out.glob("trial-*")):
        [row] = rows(trial)
        assert 0 <= float(row["val_f1"]) <= 1
        assert 0.2 < float(row["train_loss"]) < 0.9
    best = ["train", "--config", str(out / "run.yaml"), "--out", str(tmp_path / "best")]
    assert main(best) == 2
    assert main([*best, "--trust", f"{HERE}:parts"]) == 0
    assert len(EPOCHS) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images", "components=.*: must be without dataset: tune reads its images itself"),
        ("absent", "components=.*:absent: cannot be imported"),
        ("unfit", r"^loss: fails on outputs of shape \(84, 3\) and labels of shape \(84,\)"),
    ],
)
def test_what_a_tuning_cannot_take_is_said_before_anything_is_written(
    tiny: Callable[..., TrainConfig], name: str, message: str
) -> None:
    config = tiny(components=f"{HERE}:{name}", epochs=1)
    with pytest.raises(UserError, match=message):
        tune(config, time=60, trials=1, trust=f"{HERE}:{name}")
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_names", "must return a dictionary with some of loss, metrics, .*, not losses"),
        ("wrong_type", "must return a dictionary with some of loss, metrics, .*, not list"),
        ("failing", r"fails \(no such weights\)"),
        ("absent", "^components=.*:absent: cannot be imported"),
    ],
)
def test_what_they_return_is_checked(
    tiny: Callable[..., TrainConfig], name: str, message: str, tmp_path: Path
) -> None:
    config = tiny(components=f"{HERE}:{name}")
    with pytest.raises(UserError, match=message):
        train(config, trust=f"{HERE}:{name}")
    assert not config.out.exists()


def test_each_is_given_once(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(UserError, match=f"loss: must be given once, by components={HERE}:parts or in Python"):
        train(tiny(components=f"{HERE}:parts"), loss=nn.CrossEntropyLoss(), trust=f"{HERE}:parts")
    with pytest.raises(UserError, match=r"components='parts': must be an import such as package\.module"):
        tiny(components="parts")


def images() -> dict[str, Any]:
    """Images from a program."""
    digits = open_dataset("digits")
    return {"dataset": [(digits.open(index), int(digits.labels[index])) for index in range(60)]}


def test_they_may_bring_the_images(tiny: Callable[..., TrainConfig]) -> None:
    from skipnets.trust import trusting

    config = tiny(components=f"{HERE}:images")
    with trusting(f"{HERE}:images"):
        supplied = with_components(config, Supplied())
        assert with_components(config, supplied) is supplied
    assert len(supplied.dataset) == 60  # type: ignore[arg-type]
    assert supplied.names(config) == ()
