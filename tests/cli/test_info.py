"""`skipnets info`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.runs import make_folds_run, write_images

from skipnets.classifier import describe, load
from skipnets.deploy import export_model
from skipnets.training import Run


def test_info_shows_the_metadata_of_a_file(trained: Path, run) -> None:
    result = run("info", trained)
    for expected in (
        "densenet_bc40_k12",
        "bright side, dark",
        "growth_rate 4",
        "size",
        "mean",
        "recipe",
        "scores",
    ):
        assert expected in result.out
    about = json.loads(run("info", trained / "model.safetensors", "--json").out)
    assert about["classes"] == ["bright side", "dark"]
    assert about["parameters"] == sum(p.numel() for p in load(trained).model.parameters())


def test_a_run_with_folds_is_told_as_one(tmp_path: Path, run) -> None:
    data, folds = write_images(tmp_path / "dg", ("ant", "bee"), 6), tmp_path / "folds"
    make_folds_run(folds, data)
    about = run("info", folds).out
    one, both = (f"{count * describe(folds)['parameters'] // 2:,}" for count in (1, 2))
    assert f"ensemble of 2 resnet20, {both} parameters ({one} each)" in about
    assert "12 in 2 folds, validation images cut from the others in each; test 0" in about
    summary = run("summary", folds).out
    assert "one network of an ensemble of 2" in summary
    assert f"{one} (ensemble: {both})" in summary
    for command, split in (("evaluate", "test"), ("calibrate", "val")):
        refused = run(command, folds, data)
        assert refused.status == 2
        assert f"--split={split}: {folds} is a run with folds without a {split} split" in refused.err
        assert str(folds / "evaluation.json") in refused.err


def test_a_regression_is_told_with_its_targets_and_their_scales(number_run: Run, tmp_path: Path, run) -> None:
    told = run("info", number_run.folder).out
    [first, _] = describe(number_run.model)["scales"]
    assert f"radius mm (mean {first['mean']:.5g}, standard deviation {first['std']:.5g})" in told
    export_model(number_run.model, tmp_path / "m.onnx")
    assert "of a target's standard deviation, against PyTorch" in run("info", tmp_path / "m.onnx").out
