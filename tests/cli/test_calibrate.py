"""`skipnets calibrate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import skipnets


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
    assert f"{temperature:.4f}, stored in" in text
    assert "are few" in text
    assert f"1 → {temperature:.4f}" in text
    assert "exports made before keep their temperature" in text


def test_training_images_are_refused_and_the_file_left_alone(unsure: Path, run) -> None:
    before = (unsure / "model.safetensors").read_bytes()
    result = run("calibrate", unsure, "--split", "train")
    assert result.status == 2
    assert "were trained on" in result.err
    assert (unsure / "model.safetensors").read_bytes() == before
