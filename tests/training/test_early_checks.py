"""Mistakes that show without PyTorch are answered without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skipnets.errors import UserError
from skipnets.training import TrainConfig
from skipnets.training.early_checks import check_early

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder, manifest or named dataset"),
        ({"data": "digit"}, r"digit: no such .*; did you mean digits"),
        ({"data": __file__}, "must be a folder, a manifest"),
        ({"model": "densenet122"}, "model=densenet122: must be a model's name; did you mean densenet121"),
        ({"model_options": {"growth": 3}}, "growth: must be a field of densenet_bc40_k12"),
        ({"model_options": {"in_chans": 3}}, "model_options: in_chans follows from the data"),
        ({"time": "5m"}, "time='5m': must be given without epochs=3"),
        ({"find_lr": True, "lr": 0.1}, "find_lr: must be given without lr=0.1"),
        ({"weights_ignore": ("a",)}, "weights_ignore=a: needs weights"),
        ({"teacher_temperature": 2.0}, "teacher_temperature=2: needs teacher"),
        ({"teacher_share": 0.5}, "teacher_share=0.5: needs teacher"),
        ({"focal_gamma": 1.0}, "focal_gamma=1: needs loss=focal"),
        ({"whiten_stem": True, "weights": "imagenet"}, "whiten_stem: must be given without weights=imagenet"),
        ({"teacher": "missing.safetensors"}, r"^teacher: missing\.safetensors does not exist: name a model"),
        ({"teacher": __file__}, r"^teacher: .*: not a model file"),
        ({"out": Path(__file__).parent}, "out: .* is not an empty folder"),
    ],
)
def test_what_is_wrong_is_said(tiny: MakeConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_early(tiny(**changes))


def test_what_is_right_or_known_later_passes(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_early(tiny())
    check_early(tiny(data="digits", model="package.module:Class"))
    check_early(tiny(data="images of a program", model="MyNet", supplied=("dataset", "model")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").touch()
    with pytest.raises(UserError, match="already holds a run"):
        check_early(tiny())
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process has begun that run
    check_early(tiny())


def test_a_command_with_a_mistake_does_not_wait_for_pytorch(tmp_path: Path) -> None:
    code = """
import sys
from skipnets.cli import main
for words in (
    ["train", "nowhere", "--out", "run"],
    ["train", "digits", "--out", "."],
    ["train", "digits", "--out", "run", "--augmentation", "flop"],
    ["train", "digits", "--out", "run", "--model", "densenet122"],
    ["train", "digits", "--out", "run", "--teacher", "missing.safetensors"],
    ["train", "--resume", "nowhere"],
    ["tune", "nowhere", "--out", "run"],
    ["tune", "digits", "--out", "."],
):
    assert main(words) == 2, words
assert not {"torch", "sklearn", "matplotlib", "pytorch_lightning"} & sys.modules.keys(), sys.modules.keys()
"""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 8
    assert lines[2].startswith("skipnets: --augmentation=flop: must be one of ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
