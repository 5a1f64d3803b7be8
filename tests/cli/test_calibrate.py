"""`skipnets calibrate`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet
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


def test_sets_and_outliers_are_stored_and_predicted_from_the_file_and_its_export(
    unsure: Path, noisy: Path, tmp_path: Path, run
) -> None:
    folder = shutil.copytree(unsure, tmp_path / "run")
    image = noisy / "a/1.png"
    for option in ("--coverage=0.5", "--reject=0.2"):
        refused = run("predict", folder, image, option)
        assert refused.status == 2
        assert f"{option}: needs a calibrated model; first skipnets calibrate" in refused.err
    calibration = json.loads(run("calibrate", folder, noisy, "--split", "val", "--json").out)
    assert calibration["highest_coverage"] == calibration["images"] / (calibration["images"] + 1)
    assert set(calibration["outlier_auroc"]) == {"energy", "max-logit", "knn"}
    assert "prediction sets" in run("calibrate", folder, noisy, "--split", "val").out
    assert json.loads(run("info", folder, "--json").out)["uncertainty"] == {
        "images": calibration["images"],
        "outlier_score": calibration["outlier_score"],
    }
    asked = ("--coverage", 0.5, "--reject", 0.2)
    [row] = json.loads(run("predict", folder, image, *asked, "--json").out)["predictions"]
    [expected] = skipnets.load(folder).predict(image, coverage=0.5, reject=0.2)
    assert row["prediction_set"] == list(expected.prediction_set)
    assert (row["p_value"], row["rejected"]) == (expected.p_value, expected.rejected)
    line = run("predict", folder, image, *asked).out.rstrip("\n").split("\t")
    verdict = f"{'rejected' if row['rejected'] else 'accepted'} (p={row['p_value']:.4f})"
    assert line[3:] == ["|".join(row["prediction_set"]), verdict]
    plain = json.loads(run("predict", folder, image, "--json").out)["predictions"][0]
    assert set(row) - set(plain) == {"prediction_set", "p_value", "rejected"}
    # In a table, and in a folder of tables, which is of one coverage.
    run("predict", folder, image, *asked, "--output", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        [cells] = csv.DictReader(file)
    assert cells["set"] == "|".join(row["prediction_set"])
    assert (float(cells["p_value"]), cells["rejected"]) == (row["p_value"], str(row["rejected"]))
    assert run("predict", folder, image, *asked, "--output", tmp_path / "rows").status == 0
    [part] = (tmp_path / "rows").glob("*.parquet")
    [stored] = pyarrow.parquet.read_table(part).to_pylist()
    assert (stored["set"], stored["rejected"]) == (cells["set"], row["rejected"])
    other = run("predict", folder, image, "--output", tmp_path / "rows")
    assert "holds predictions with --coverage=0.5" in other.err
    # An export carries them.
    assert run("export", folder, "--format", "onnx").status == 0
    [exported] = json.loads(run("predict", folder / "model.onnx", image, *asked, "--json").out)["predictions"]
    assert exported["prediction_set"] == row["prediction_set"]
    assert exported["p_value"] == pytest.approx(row["p_value"], abs=0.2)
    for option, message in (
        ("--coverage=0.999", "--coverage=0.999: needs at least 999 calibration images, and the model has"),
        ("--coverage=2", "--coverage=2.0: must be above 0 and below 1"),
        ("--reject=0.0001", "--reject=0.0001: needs at least 9,999 calibration images"),
    ):
        refused = run("predict", folder, image, option)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert message in refused.err


def test_test_time_augmentation_is_one_option_of_all_that_predict(
    unsure: Path, noisy: Path, tmp_path: Path, run
) -> None:
    folder = shutil.copytree(unsure, tmp_path / "run")
    image = noisy / "a/1.png"
    words = ("evaluate", folder, noisy, "--split", "val", "--json")
    plain, flipped = (json.loads(run(*words, *more).out) for more in ((), ("--tta", "flip")))
    classifier = skipnets.load(folder, tta="flip")
    assert flipped["tta"] == "flip"
    assert "tta" not in plain
    assert flipped["nll"] == skipnets.evaluation.evaluate(classifier, noisy, split="val").metrics.nll
    assert flipped["nll"] != plain["nll"]
    line = run("predict", folder, image, "--tta", "flip").out.split("\t")
    assert float(line[2]) == pytest.approx(classifier.predict(image)[0].probability, abs=1e-4)
    assert "predictions with --tta flip" in run("calibrate", folder, noisy, "--split=val", "--tta=flip").out
    assert run("predict", folder, image, "--tta", "flip", "--coverage", 0.5).status == 0
    refused = run("predict", folder, image, "--coverage", 0.5)
    assert (refused.status, refused.err) == (
        2,
        "skipnets: --coverage=0.5: the model was calibrated with --tta=flip, not none; "
        "use that, or calibrate it again\n",
    )
    for command in ("evaluate", "predict", "calibrate", "serve"):
        arguments = [folder] if command == "serve" else [folder, image]
        refused = run(command, *arguments, "--tta", "flop")
        assert refused.status == 2
        assert refused.err.startswith("skipnets: --tta=flop: must be one of none, flip, crops, flip-crops")
    assert run("predict", folder, image, "--tta", "crops", "--output", tmp_path / "rows").status == 0
    assert (
        "holds predictions with --tta=crops"
        in run("predict", folder, image, "--output", tmp_path / "rows").err
    )
