"""Wrong input gives one clear line on standard error, exit status 2, and nothing half-written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.commands import QUICK, Result, write_image


@pytest.fixture
def place(tmp_path: Path, photos: Path, trained: Path) -> Path:
    """A folder with everything that can be wrong."""
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "one-class/only/a.png", 10)
    write_image(tmp_path / "one-class/only/b.png", 10)
    for index in range(9):
        write_image(tmp_path / "few/many" / f"{index}.png", 10)
    write_image(tmp_path / "few/one/a.png", 10)
    (tmp_path / "text.safetensors").write_text("not a model")
    model = (trained / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(model[: len(model) // 2])
    (tmp_path / "stub.safetensors").write_bytes(model[:5])
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02not a checkpoint")
    (tmp_path / "unknown.yaml").write_text(f"data: {photos}\nout: {tmp_path / 'out'}\nlearning_rat: 0.1\n")
    (tmp_path / "broken.yaml").write_text("data: [")
    (tmp_path / "list.yaml").write_text("- data")
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "run").symlink_to(trained)
    return tmp_path


CASES = {
    "an unknown model": (
        ["train", "photos", "--out", "out", "--model", "densenet122"],
        ["densenet122", "did you mean densenet121"],
    ),
    "an unknown field of the model": (
        ["train", "photos", "--out", "out", *QUICK, "--model-options.growth", 3],
        ["growth", "growth_rate"],
    ),
    "an unknown command": (["trian"], ["trian", "train"]),
    "an unknown option": (["train", "photos", "--outt", "out"], ["--outt", "--out"]),
    "an empty folder": (["train", "empty", "--out", "out"], ["empty", "holds no images"]),
    "one class": (["train", "one-class", "--out", "out"], ["one-class", "only", "one class"]),
    "a class too small to split": (["train", "few", "--out", "out"], ["few", '"one"', "at least 3"]),
    "missing data": (["train", "nowhere", "--out", "out"], ["nowhere", "no such folder"]),
    "no data": (["train", "--out", "out"], ["data", "must be given"]),
    "no run folder": (["train", "photos"], ["out", "must be given"]),
    "a missing model file": (
        ["predict", "none.safetensors", "photos"],
        ["none.safetensors", "does not exist"],
    ),
    "a missing image": (["predict", "run", "none.jpg"], ["none.jpg", "is not there"]),
    "a folder without images": (["predict", "run", "empty"], ["empty", "holds no images"]),
    "not a model": (["info", "text.safetensors"], ["text.safetensors"]),
    "a truncated model file": (["predict", "cut.safetensors", "photos"], ["cut.safetensors", "truncated"]),
    "a model file of five bytes": (["evaluate", "stub.safetensors", "photos"], ["stub.safetensors"]),
    "a checkpoint that is none": (
        ["train", "photos", "--out", "out", *QUICK, "--weights", "bad.pth"],
        ["bad.pth"],
    ),
    "a missing checkpoint": (["train", "photos", "--out", "out", "--weights", "no.pth"], ["no.pth"]),
    "a wrong channel count": (["train", "photos", "--out", "out", "--channels", 2], ["channels", "2"]),
    "an image size below the smallest": (
        ["train", "photos", "--out", "out", "--model", "densenet121", "--size", 16],
        ["16", "29"],
    ),
    "an impossible size": (["train", "photos", "--out", "out", "--size", 0], ["size", "0"]),
    "a run folder that holds a run": (
        ["train", "photos", "--out", "run"],
        ["already holds a run", "--resume"],
    ),
    "a negative rate": (["train", "photos", "--out", "out", "--lr", -1], ["lr", "-1", "greater than 0"]),
    "a rate that is none": (["train", "photos", "--out", "out", "--lr", "fast"], ["--lr", "fast"]),
    "a wrong choice": (
        ["train", "photos", "--out", "out", "--imbalance", "ignore"],
        ["ignore", "weighted-loss"],
    ),
    "fractions that do not add up": (
        ["train", "photos", "--out", "out", "--fractions", 0.5, 0.1, 0.1],
        ["fractions", "1"],
    ),
    "an unknown field in the YAML": (["train", "--config", "unknown.yaml"], ["unknown.yaml", "learning_rat"]),
    "broken YAML": (["train", "--config", "broken.yaml"], ["broken.yaml", "YAML"]),
    "YAML that is a list": (["train", "--config", "list.yaml"], ["list.yaml", "mapping"]),
    "missing YAML": (["train", "--config", "no.yaml"], ["no.yaml"]),
    "resume with other options": (
        ["train", "--resume", "run", "--lr", 0.1],
        ["--resume", "no other options"],
    ),
    "resume of no run": (["train", "--resume", "empty"], ["empty", "not a run folder"]),
    "resume of a complete run": (["train", "--resume", "run"], ["run", "complete"]),
    "data with other classes": (["evaluate", "run", "few"], ["many"]),
    "an unknown split": (["evaluate", "run", "--split", "tset"], ["tset", "test"]),
    "an unknown table format": (
        ["predict", "run", "photos", "--output", "out.xlsx"],
        ["out.xlsx", ".parquet, .csv, .jsonl"],
    ),
    "an unknown runtime": (["predict", "run", "photos", "--runtime", "tensorrt"], ["tensorrt"]),
    "an unknown device": (["predict", "run", "photos", "--device", "abacus"], ["abacus"]),
    "no ranking": (["predict", "run", "photos", "--top-k", 0], ["top_k", "0"]),
    "no model matches": (["models", "vgg*"], ["vgg*"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line(
    case: str, place: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = CASES[case]
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    result = run(*words)
    assert result.status == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    for part in expected:
        assert part in lines[0]
    assert sorted(place.rglob("*")) == before


def test_a_missing_extra_says_how_to_install_it(photos: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("skipnets.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "skipnets.cli.train", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    result = run("train", photos, "--out", photos.parent / "none")
    assert (result.status, result.out) == (2, "")
    assert 'pip install "skipnets[train]"' in result.err
