"""More epochs for a run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipnets.classifier import load
from skipnets.errors import UserError
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import Run, TrainConfig, resume, train
from skipnets.training.extending import set_schedule
from skipnets.training.locking import locked

MakeConfig = Callable[..., TrainConfig]
UNMEASURED = {"recipe": "scratch", "block_execution": "plain", "channels_last": False}


def timeless(run: Run) -> list[object]:
    measured = ("seconds", "validation_seconds", "images_per_second", "processor_seconds", "memory")
    return [
        {name: value for name, value in row.to_dict().items() if name not in measured} for row in run.rows
    ]


def test_a_complete_run_goes_on_as_if_it_had_been_longer(
    tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a constant rate, two epochs and two more are four."""
    options = {"schedule": "constant", "warmup": 0.0, "ema": 0.9, **UNMEASURED}
    whole = train(tiny(out=tmp_path / "whole", epochs=4, **options))
    run = train(tiny(epochs=2, **options))
    extended = resume(run.folder, epochs=4)
    assert timeless(extended) == timeless(whole)
    first, second = (read_model_file(each.model).tensors() for each in (extended, whole))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert extended.scores == whole.scores | {"classifier": str(run.model)}
    assert extended.config.epochs == 4
    first_line = extended.config_file.read_text().splitlines()[0]
    assert first_line.startswith("# Extended from 2 to 4 epochs: ")
    assert first_line.endswith("does not repeat this run exactly.")
    assert "was evaluated on its test split before" in capsys.readouterr().err
    for model, count in ((whole.model, 4), (run.model, 4)):
        assert load(model).provenance["epochs"] == count
    with pytest.raises(UserError, match=r"^epochs=4: must be more than the 4 that the run in .* has$"):
        resume(run.folder, epochs=4)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"is complete; --epochs with more than its 4 extends it, --config"):
        resume(run.folder)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "cosine"}, 0.1 * (1 + math.cos(math.pi * 12 / 18)) / 2),
        ({"schedule": "linear"}, 0.1 * (1 - 12 / 18)),
        ({"schedule": "milestones", "milestones": (0.5, 0.9)}, 0.01),
        ({"schedule": "constant"}, 0.1),
    ],
)
def test_the_checkpoint_is_put_into_the_longer_schedule(schedule: dict[str, Any], expected: float) -> None:
    """Two epochs of six steps are done, which are two thirds of three epochs."""
    group = {"initial_lr": 0.1, "lr": 0.0}
    checkpoint = {"global_step": 12, "epoch": 1, "optimizer_states": [{"param_groups": [group]}]}
    set_schedule(checkpoint, TrainConfig(data="digits", out=Path("run"), epochs=3, warmup=0.0, **schedule))
    assert group["lr"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "cosine"},
        {"schedule": "milestones", "milestones": (0.5, 0.75)},
    ],
)
def test_the_rate_goes_on_as_in_the_longer_schedule(
    tiny: MakeConfig, tmp_path: Path, schedule: dict[str, object]
) -> None:
    options = {"warmup": 1.0, "ema": 0.0, **schedule, **UNMEASURED}
    whole = train(tiny(out=tmp_path / "whole", epochs=4, **options))
    run = resume(train(tiny(epochs=2, **options)).folder, epochs=4)
    assert [row.lr for row in run.rows[2:]] == pytest.approx([row.lr for row in whole.rows[2:]])


@pytest.mark.slow
def test_a_run_that_ran_out_of_patience_gets_it_back(
    tiny: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = {"lr": 1e-9, "patience": 1, "epochs": 6, "ema": 0.0, **UNMEASURED}
    run = train(tiny(**hopeless))
    stopped = len(run.rows)
    assert stopped < 6
    best = run.best_epoch
    assert len(resume(run.folder, epochs=8).rows) > stopped
    same = f"no better epoch than epoch {best}: the model is unchanged" in capsys.readouterr().err
    assert same == (run.best_epoch == best)


def files(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_what_cannot_be_extended(tiny: MakeConfig, digits_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits_folder, tmp_path / "data")
    run = train(tiny(data=data, epochs=1, **UNMEASURED))
    before = files(run)
    # A file lock of this process itself would be released with any descriptor of its file.
    with locked(run.folder), pytest.raises(UserError, match="is in use by another training"):
        resume(run.folder, epochs=2)
    assert files(run) == before
    data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data: no such folder"):
        resume(run.folder, epochs=2)
    assert files(run) == before
    (tmp_path / "moved").rename(data)
    image = data / "0/07.png"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(UserError, match="are not those that the run began with"):
        resume(run.folder, epochs=2)
    assert files(run) == before
    with pytest.raises(UserError, match=r"^epochs=0: must be at least 1$"):
        resume(run.folder, epochs=0)
    run.checkpoint.unlink()
    with pytest.raises(UserError, match=r"^resume: .*last\.ckpt is gone, so the run cannot be extended$"):
        resume(run.folder, epochs=2)
    assert run.evaluation.exists()
