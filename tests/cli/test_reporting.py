"""`report`, `compare` and `calibrate` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.helpers.commands import QUICK, write_image

import skipnets
from skipnets.cli import main


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright images, of which a third are in the wrong folder."""
    root = tmp_path_factory.mktemp("noisy")
    for index in range(60):
        is_dark = bool(index % 2) != (index % 3 == 0)
        write_image(root / ("a" if index % 2 else "b") / f"{index}.png", 10 if is_dark else 180, index)
    return root


@pytest.fixture(scope="module")
def unsure(noisy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on those. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "unsure"
    assert main([str(word) for word in ["train", noisy, "--out", out, *QUICK]]) == 0
    return out


def test_a_report_is_written_and_its_place_printed(trained: Path, tmp_path: Path, run) -> None:
    result = run("report", trained, "--output", tmp_path / "r.html", "--workers", 0)
    assert (result.status, result.out) == (0, f"{tmp_path / 'r.html'}\n")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert run("report", trained, "--output", tmp_path / "r.pdf").status == 2


def test_runs_are_compared(trained: Path, photos: Path, unsure: Path, tmp_path: Path, run) -> None:
    assert run("train", photos, "--out", tmp_path / "other", *QUICK, "--lr", 0.01).status == 0
    result = run("compare", trained, tmp_path / "other", "--resamples", 50)
    assert result.status == 0
    for expected in (
        "6 (",
        "the same for all",
        "accuracy",
        "other against light",
        "right alone on",
        "95 % interval",
    ):
        assert expected in result.out
    figures = json.loads(run("compare", trained, tmp_path / "other", "--resamples", 50, "--json").out)
    assert figures["runs"] == ["light", "other"]
    refused = run("compare", trained, unsure)
    assert refused.status == 2
    assert "cannot be compared: they tell different classes" in refused.err
    assert run("compare", trained).status == 2
    assert "is not a run folder" in run("compare", trained, tmp_path / "none").err


def test_a_temperature_is_stored_and_used_by_every_later_command(
    unsure: Path, noisy: Path, tmp_path: Path, run
) -> None:
    folder = shutil.copytree(unsure, tmp_path / "run")
    before = json.loads(run("evaluate", folder, "--json", "--split", "val").out)
    result = run("calibrate", folder, noisy, "--split", "val", "--json")
    assert result.status == 0
    calibration = json.loads(result.out)
    temperature = calibration["temperature"]
    assert calibration["nll_before"] == pytest.approx(before["nll"])
    assert skipnets.load(folder).temperature == temperature
    assert json.loads(run("info", folder, "--json").out)["temperature"] == temperature
    after = json.loads(run("evaluate", folder, "--json", "--split", "val").out)
    assert after["nll"] == pytest.approx(calibration["nll_after"])
    assert after["nll"] <= before["nll"]
    assert after["accuracy"] == before["accuracy"]
    image = noisy / "a/1.png"
    expected = skipnets.load(unsure)
    expected.temperature = temperature
    line = run("predict", folder, image).out.split("\t")
    assert float(line[2]) == pytest.approx(expected.predict([image])[0].probability, abs=1e-4)
    compared = json.loads(run("compare", unsure, folder, "--json", "--resamples", 20).out)
    assert compared["differences"][0]["difference"] == 0
    # The weights are as they were.
    old, new = skipnets.load(unsure).model.state_dict(), skipnets.load(folder).model.state_dict()
    assert all((old[name] == new[name]).all() for name in old)
    text = run("calibrate", folder).out
    assert f"{temperature:.4f}, now in" in text
    assert "are few" in text


def test_training_images_are_refused_and_the_file_left_alone(unsure: Path, run) -> None:
    before = (unsure / "model.safetensors").read_bytes()
    result = run("calibrate", unsure, "--split", "train")
    assert result.status == 2
    assert "were trained on" in result.err
    assert (unsure / "model.safetensors").read_bytes() == before
