"""Wrong input gives one clear line on standard error, exit status 2, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.commands import QUICK, Result, write_image
from tests.helpers.modules import modules_imported_anew

from skipnets.errors import missing_extra


@pytest.fixture
def place(tmp_path: Path, photos: Path, trained: Path, runs: dict[str, Path]) -> Path:
    """A folder with everything that can be wrong."""
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "one-class/only/a.png", 10)
    write_image(tmp_path / "one-class/only/b.png", 10)
    for index in range(9):
        write_image(tmp_path / "few/many" / f"{index}.png", 10, seed=index)
    write_image(tmp_path / "few/one/a.png", 10, seed=9)
    (tmp_path / "text.safetensors").write_text("not a model")
    model = (trained / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(model[: len(model) // 2])
    (tmp_path / "stub.safetensors").write_bytes(model[:5])
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02not a checkpoint")
    (tmp_path / "unknown.yaml").write_text(f"data: {photos}\nout: {tmp_path / 'out'}\nlearning_rat: 0.1\n")
    (tmp_path / "broken.yaml").write_text("data: [")
    (tmp_path / "labels.csv").write_text("path,cat\nphoto.png,dark\n")
    (tmp_path / "list.yaml").write_text("- data")
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "run").symlink_to(trained)
    (tmp_path / "residual").symlink_to(runs["resnet"])
    (tmp_path / "net.onnx").write_text("never looked at")
    (tmp_path / "file").write_text("neither an image nor a folder")
    write_image(tmp_path / "photo.png", 10)
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
    "a name that no file can have": (["data", "x" * 300], ["x" * 300, "File name too long"]),
    "missing data": (["train", "nowhere", "--out", "out"], ["nowhere", "no such folder"]),
    "no splits": (
        ["train", "photos", "--out", "out", "--splits", "no.csv"],
        ["--splits: no.csv: No such file"],
    ),
    "no data": (
        ["train", "--out", "out"],
        ["skipnets: DATA must be given, as in: skipnets train photos --time 10m --out runs/photos"],
    ),
    "no run folder": (
        ["train", "photos"],
        ["skipnets: --out must be given (the folder to write the run to), as in: skipnets train photos"],
    ),
    "no model": (["explain"], ["skipnets: MODEL must be given, as in: skipnets explain runs/cats a.jpg"]),
    "several mistakes": (
        ["train", "--epochs", 0, "--batch-size", 0],
        [
            "skipnets: DATA must be given; --out must be given (the folder to write the run to); ",
            "; --epochs=0: must be at least 1; ",
            "; --batch-size=0: must be at least 1, as in: skipnets train photos",
        ],
    ),
    "a missing model file": (
        ["predict", "none.safetensors", "photos"],
        ["none.safetensors", "does not exist"],
    ),
    "a missing image": (["predict", "run", "none.jpg"], ["none.jpg", "does not exist"]),
    "a folder without images": (["predict", "run", "empty"], ["empty", "holds no images"]),
    "not a model": (["info", "text.safetensors"], ["text.safetensors"]),
    "a truncated model file": (["predict", "cut.safetensors", "photos"], ["cut.safetensors", "truncated"]),
    "a model file of five bytes": (["evaluate", "stub.safetensors", "photos"], ["stub.safetensors"]),
    "a checkpoint that is none": (
        ["train", "photos", "--out", "out", *QUICK, "--weights", "bad.pth"],
        ["bad.pth"],
    ),
    "a missing checkpoint": (["train", "photos", "--out", "out", "--weights", "no.pth"], ["no.pth"]),
    "a wrong channel count": (["train", "photos", "--out", "out", "--channels", 0], ["channels", "0"]),
    "an image size below the smallest": (
        ["train", "photos", "--out", "out", "--model", "densenet121", "--size", 16],
        ["16", "29"],
    ),
    "two sides below the smallest": (
        ["train", "photos", "--out", "out", "--model", "densenet121", "--size", 40, 16],
        ["16", "29"],
    ),
    "an impossible size": (["train", "photos", "--out", "out", "--size", 0], ["size", "0"]),
    "a run folder that holds a run": (
        ["train", "photos", "--out", "run"],
        ["already holds a run", "--resume"],
    ),
    "a negative rate": (["train", "photos", "--out", "out", "--lr", -1], ["lr", "-1", "greater than 0"]),
    "a rate that is none": (
        ["train", "photos", "--out", "out", "--lr", "fast"],
        ["--lr=fast: must be a number"],
    ),
    "a rate that is not there": (["train", "photos", "--out", "out", "--lr"], ["--lr: must have a value"]),
    "a time that looks like an option": (
        ["train", "photos", "--out", "out", "--time", "-5s"],
        ["--time: must have a value; one that begins with a hyphen is given as --time=-5s"],
    ),
    "a rate given twice": (
        ["train", "photos", "--out", "out", "--lr", 1, "--lr", 2],
        ["--lr=2: must be given once"],
    ),
    "a size of three": (
        ["train", "photos", "--out", "out", "--size", 3, 4, 5],
        ["size=3 4 5: must be one side, or height and width"],
    ),
    "a wrong field of the model": (
        ["train", "photos", "--out", "out", "--model-options.growth-rate", "x"],
        ["--model-options.growth-rate=x: must be a whole number"],
    ),
    "a wrong norm": (
        ["summary", "resnet18", "--model-options.norm", "layer"],
        ["--model-options.norm=layer: must be one of batch, group, layer2d, instance, ", "evonorm-s0, none"],
    ),
    "two formats": (
        ["summary", "resnet18", "--json", "--format", "csv"],
        ["--format=csv: must be json with --json"],
    ),
    "memory without fit": (
        ["summary", "resnet18", "--memory", "1GiB"],
        ["--memory=1GiB: needs --batch-size=fit"],
    ),
    "an execution without fit": (
        ["summary", "resnet18", "--execution", "linear"],
        ["--execution=linear: needs --batch-size=fit"],
    ),
    "no threads to read": (["predict", "run", "photos", "--workers", 0], ["--workers=0: must be at least 1"]),
    "fewer threads to read": (["evaluate", "run", "--workers", -1], ["--workers=-1: must be at least 1"]),
    "no such column": (
        ["evaluate", "run", "labels.csv", "--label-column", "x"],
        ["--label-column=x: ", "has the columns"],
    ),
    "options on how other data are read": (
        ["evaluate", "run", "--label-column", "x"],
        ["DATA must be given with options"],
    ),
    "a wrong choice": (
        ["train", "photos", "--out", "out", "--imbalance", "ignore"],
        ["ignore", "weighted-loss"],
    ),
    "fractions that do not add up": (
        ["train", "photos", "--out", "out", "--fractions", 0.5, 0.1, 0.1],
        ["fractions", "1"],
    ),
    "an unknown field in the YAML": (["train", "--config", "unknown.yaml"], ["unknown.yaml", "learning_rat"]),
    "broken YAML": (
        ["train", "--config", "broken.yaml"],
        ["broken.yaml, line 1: not YAML (expected the node content"],
    ),
    "YAML that is a list": (["train", "--config", "list.yaml"], ["list.yaml", "mapping"]),
    "missing YAML": (["train", "--config", "no.yaml"], ["no.yaml"]),
    "resume with other options": (
        ["train", "--resume", "run", "--lr", 0.1],
        ["--resume", "without other options but --missing"],
    ),
    "resume of no run": (["train", "--resume", "empty"], ["empty", "not a run folder"]),
    "resume of a complete run": (["train", "--resume", "run"], ["run", "complete"]),
    "data with other classes": (["evaluate", "run", "few"], ["many"]),
    "an unknown split": (["evaluate", "run", "--split", "tset"], ["tset", "test"]),
    "an unknown table format": (
        ["predict", "run", "photos", "--output", "out.xlsx"],
        ["--output=out.xlsx: must end in .parquet, .csv or .jsonl"],
    ),
    "an unknown runtime": (["predict", "run", "photos", "--runtime", "tensorrt"], ["tensorrt"]),
    "an unknown device": (["predict", "run", "photos", "--device", "abacus"], ["abacus"]),
    "no ranking": (["predict", "run", "photos", "--top-k", 0], ["--top-k=0: must be at least 1"]),
    "no model matches": (["models", "vgg*"], ["vgg*"]),
    "no such model": (["summary", "densnet121"], ["MODEL=densnet121: must be", "did you mean densenet121"]),
    "too small images": (
        ["summary", "densenet121", "--input-size", 8],
        ["--input-size=8: must be at least 29 for densenet121"],
    ),
    "fit without memory": (["summary", "resnet18", "--batch-size", "fit"], ["--memory", "16GiB"]),
    "memory that is none": (
        ["summary", "resnet18", "--batch-size", "fit", "--memory", "much"],
        ["much", "16GiB"],
    ),
    "a batch that is none": (["summary", "resnet18", "--batch-size", "big"], ["big", "integer or fit"]),
    "a summary where nothing can be": (
        ["summary", "resnet18", "--output=file/s.txt"],
        ["--output=file/s.txt: cannot be written: "],
    ),
    "a drawing of another kind": (
        ["diagram", "resnet18", "--output", "a.gif"],
        ["a.gif", ".svg, .png, .pdf"],
    ),
    "a drawing where nothing can be": (
        ["diagram", "resnet18", "--block", 1, "--output", "file/d.svg"],
        ["--output=file/d.svg: cannot be written: "],
    ),
    "a drawing of no model": (
        ["diagram", "resnet18", "resnt34", "--output", "a.svg"],
        ["MODELS=resnt34: must be", "did you mean resnet34"],
    ),
    "no such block": (["diagram", "resnet18", "--block", 5, "--output", "a.svg"], ["from 1 to 4", "5"]),
    "a sheet of another kind": (["explain", "run", "photo.png", "--output", "a.jpg"], ["a.jpg", ".png"]),
    "what is no image": (["explain", "run", "file", "--output", "a.png"], ["file", "not an image"]),
    "a missing image to explain": (
        ["explain", "run", "none.png", "--output", "a.png"],
        ["none.png", "does not exist"],
    ),
    "no such class": (
        ["explain", "run", "photo.png", "--classes", "drak", "--output", "a.png"],
        ["drak", "did you mean dark"],
    ),
    "no such stage": (
        ["explain", "run", "photo.png", "--stage", "layer9", "--output", "a.png"],
        ["layer9", "denseblock1"],
    ),
    "a folder without images for a ResNet": (
        ["reuse", "residual", "empty", "--output", "r.png"],
        ["empty"],
    ),
    "reuse of no images": (["reuse", "residual", "--images", 0, "--output", "r.png"], ["images", "0"]),
    "reuse of a name": (["reuse", "resnet18", "--output", "r.png"], ["resnet18", "does not exist"]),
    "reuse as a table": (["reuse", "run", "--output", "r.csv"], ["r.csv", ".png, .svg, .pdf"]),
    "an explanation by an export": (
        ["explain", "net.onnx", "photo.png", "--output", "a.png"],
        ["net.onnx", "model file or run folder that it was made from"],
    ),
    "reuse in an export": (["reuse", "net.onnx", "--output", "r.png"], ["net.onnx", "that it was made from"]),
    "calibration of an export": (["calibrate", "net.onnx"], ["net.onnx", "that it was made from"]),
    "a report of no run": (["report", "empty"], ["empty", "not a run folder"]),
    "a report of a name": (["report", "densenet121"], ["densenet121", "not a run folder"]),
    "a report that cannot be written": (["report", "run", "--output", "file/r.html"], ["cannot be written"]),
    "a comparison with no run": (["compare", "run", "empty"], ["empty", "evaluation.json"]),
    "calibration of a folder": (["calibrate", "empty"], ["empty", "model.safetensors"]),
    "a value that is empty": (["predict", "run", ""], ["argument 3 is empty", "shell variable"]),
    "an option that is empty": (["predict", "run", "photo.png", "--output="], ["--output is empty"]),
    "an option followed by nothing": (["train", "photos", "--out", ""], ["--out is empty"]),
    "a device that is not there": (
        ["predict", "run", "photo.png", "--device", "cuda:99"],
        ["--device=cuda:99: not available"],
    ),
    "no devices": (["train", "photos", "--out", "out", "--devices", 0], ["--devices=0: must be a number of"]),
    "a choice that is nearly right": (
        ["train", "photos", "--out", "out", "--fit", "pads"],
        ["must be one of pad, crop, stretch, center; did you mean pad?"],
    ),
    "a run within a file": (["train", "photos", "--out", "file/run"], ["--out", "file is not a folder"]),
    "an evaluation in place of a file": (
        ["evaluate", "run", "photos", "--output", "file"],
        ["--output=file: cannot be written", "is not a folder"],
    ),
    "a name that is too long": (
        ["predict", "run", "photo.png", "--output", f"{'n' * 300}.csv"],
        ["cannot be written: File name too long"],
    ),
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


def test_a_missing_extra_says_how_to_install_it(photos: Path, run) -> None:
    with modules_imported_anew("skipnets.training", "skipnets.cli.train", missing="pytorch_lightning"):
        result = run("train", photos, "--out", photos.parent / "none")
    assert (result.status, result.out) == (2, "")
    assert result.err == f"skipnets: {missing_extra('train')}\n"
