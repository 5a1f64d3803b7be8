"""A run is resumed on what it began with, or says what is different."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.training.test_trainer import interrupt_at

from skipnets.errors import UserError
from skipnets.evaluation.evaluating import open_own_images
from skipnets.training import Run, TrainConfig, TrainingInterrupted, read_config, resume, train
from skipnets.training.checks import check_files, check_images
from skipnets.training.run import claim

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """A folder with a run on a copy of the images, interrupted in its second epoch."""
    root = tmp_path_factory.mktemp("begun")
    shutil.copytree(digits_folder, root / "data")
    config = TrainConfig(
        data=root / "data",  # type: ignore[arg-type]
        out=root / "run",
        model="densenet_bc40_k12",
        model_options={"block_config": [1, 1], "growth_rate": 4},
        epochs=2,
        batch_size=16,
        workers=0,
        accelerator="cpu",
        block_execution="plain",
    )
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 8, KeyboardInterrupt())
        with pytest.raises(TrainingInterrupted):
            train(config)
    return root


@pytest.fixture
def interrupted(begun: Path, tmp_path: Path) -> Iterator[Run]:
    """A copy of that run; the images are as they were afterwards."""
    shutil.copytree(begun / "run", tmp_path / "run")
    yield Run(tmp_path / "run")
    shutil.copytree(tmp_path / "before", begun / "data", dirs_exist_ok=True)


@pytest.fixture(autouse=True)
def _images_before(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "data", tmp_path / "before")


def test_what_is_cut_short_or_replaced_is_named(interrupted: Run, tmp_path: Path) -> None:
    splits = interrupted.splits.read_text()
    lines = splits.splitlines(keepends=True)
    interrupted.splits.write_text("".join(lines[:90]))
    with pytest.raises(UserError, match=r"splits\.csv: has 90 lines and is not the file of 121 lines"):
        resume(interrupted.folder)
    interrupted.splits.write_text(splits[:-3])
    with pytest.raises(UserError, match="cut short or changed"):
        resume(interrupted.folder)
    interrupted.splits.write_text(splits)

    config = interrupted.config_file.read_text()
    interrupted.config_file.write_text(config[: len(config) // 2])
    with pytest.raises(UserError, match=r"run\.yaml was cut short"):
        resume(interrupted.folder)
    interrupted.config_file.write_text(config)

    environment = interrupted.environment.read_text()
    interrupted.environment.write_text(environment[:50])
    with pytest.raises(UserError, match=r"environment\.json: damaged"):
        resume(interrupted.folder)
    interrupted.environment.write_text(environment)

    image = Path(interrupted.config.data) / "0/07.png"
    before = image.read_bytes()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    with pytest.raises(UserError, match=r"resume: 1 of 120 images .* not those .*: 0/07\.png"):
        resume(interrupted.folder)
    image.write_bytes(before)
    assert resume(interrupted.folder).evaluation.exists()


def test_a_run_of_an_older_version_says_nothing_to_check(interrupted: Run) -> None:
    content = json.loads(interrupted.environment.read_text())
    del content["files"]
    interrupted.environment.write_text(json.dumps(content))
    check_files(interrupted)
    interrupted.environment.unlink()
    check_files(interrupted)


def test_an_evaluation_does_not_take_a_remnant_for_the_test_split(interrupted: Run) -> None:
    import skipnets

    lines = interrupted.splits.read_text().splitlines(keepends=True)
    interrupted.splits.write_text("".join(lines[:60]))
    with pytest.raises(UserError, match="cut short or changed"):
        open_own_images(skipnets.load(interrupted.folder))


def test_a_sample_of_many_images_is_looked_at(interrupted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from skipnets.data.sources import open_dataset
    from skipnets.training import checks

    monkeypatch.setattr(checks, "SAMPLE", 10)
    dataset = open_dataset(interrupted.config.data, splits=interrupted.splits)
    for path in Path(interrupted.config.data).rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="10 of 10 images looked at"):
        check_images(interrupted.splits, dataset)


KILL_AT = """
import os, signal, sys
from skipnets import run_folder
from skipnets.training import read_config, run, train
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(run, sys.argv[2], killed)
train(read_config(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["write_environment", "write_config"])
def test_a_run_killed_before_it_can_be_resumed_can_be_started_again(
    place: str, tiny: MakeConfig, tmp_path: Path
) -> None:
    from skipnets.training.config import config_to_yaml

    config = tiny(epochs=1)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    killed = subprocess.run(
        [sys.executable, "-c", KILL_AT, tmp_path / "config.yaml", place], capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert (config.out / "splits.csv").exists()
    assert not (config.out / "run.yaml").exists()
    with pytest.raises(UserError, match="not a run folder"):
        resume(config.out)
    assert train(read_config(tmp_path / "config.yaml")).evaluation.exists()


def test_only_the_beginning_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "splits.csv").write_text("path,label,split\n")
    with pytest.raises(UserError, match="not an empty folder"):
        claim(folder)
    (folder / ".lock").write_text("")
    (folder / ".run.4711-1a2b3c4d.tmp.yaml").write_text("")
    claim(folder)
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        claim(folder)


def test_a_folder_that_is_removed_in_mid_run_is_one_line(
    tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipnets.training.task import ClassificationTask

    config = tiny(epochs=2)
    original = ClassificationTask.training_step

    def training_step(self: ClassificationTask, batch: object, batch_idx: int) -> object:
        if self.trainer.current_epoch == 1 and batch_idx == 2:
            shutil.rmtree(config.out)
        return original(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    with pytest.raises(UserError, match=r"^out: .*run was removed during the training"):
        train(config)
    assert not config.out.exists()


def test_two_trainings_into_one_folder(tiny: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from skipnets.training.locking import locked

    config = tiny(epochs=1)
    with locked(config.out), pytest.raises(UserError, match="is in use by another training"):
        train(config)
    assert not config.out.exists()
