"""`skipnets export`, and the other commands on what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.classifiers import FORMATS, write_class_folders
from tests.helpers.commands import Result, write_image
from tests.helpers.modules import modules_imported_anew
from tests.helpers.own_networks import TinyNet

from skipnets.classifier import Classifier, load
from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.export import Export

NAMES = {"onnx": "m.onnx", "openvino": "m", "pt2": "m.pt2"}


@pytest.fixture
def place(
    exports: dict[str, Export],
    exported_classifier: Classifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with a model file, its exports, images, and things that are wrong; to be in."""
    assert exported_classifier.path is not None
    (tmp_path / "run").symlink_to(exported_classifier.path.parent)
    for file_format, name in NAMES.items():
        (tmp_path / name).symlink_to(exports[file_format].path)
    write_class_folders(tmp_path / "photos", exported_classifier.classes)
    for label in ("cat", "dog"):
        for index in range(4):
            write_image(tmp_path / "pets" / label / f"{index}.png", 10, index)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("place")
def test_what_was_compared_is_printed(run: Callable[..., Result]) -> None:
    words = ["export", "run", "--format", "pt2", "--output", "new.pt2", "--check", "photos"]
    shown = run(*words).out
    for expected in ("new.pt2", "pt2, fp32, takes uint8", "30 images (photos)", "30 of 30"):
        assert expected in shown
    words[words.index("new.pt2")] = "another.pt2"
    told = json.loads(run(*words, "--json").out)
    assert told["written"] == ["another.pt2"]
    assert told["check"]["count"] == told["check"]["same_labels"] == 30
    assert 0 <= told["check"]["largest_difference"] < 1e-5


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_commands_give_the_same(file_format: str, run: Callable[..., Result]) -> None:
    evaluated, predicted = [], []
    for words in (["run", "photos", "--runtime", "torch"], [NAMES[file_format], "photos"]):
        evaluated.append(json.loads(run("evaluate", *words, "--split", "all", "--json").out))
        predicted.append(run("predict", *words).out.split())
    assert evaluated[1]["accuracy"] == evaluated[0]["accuracy"]
    assert evaluated[1]["images"] == evaluated[0]["images"] == 30
    assert evaluated[1]["nll"] == pytest.approx(evaluated[0]["nll"], rel=1e-5)
    assert len(predicted[0]) == 3 * 30
    assert predicted[1][0::3] == predicted[0][0::3]
    assert predicted[1][1::3] == predicted[0][1::3]
    probabilities = [[float(word) for word in words[2::3]] for words in predicted]
    assert probabilities[1] == pytest.approx(probabilities[0], abs=1.1e-4)
    about = run("info", NAMES[file_format]).out
    assert f"{file_format}, fp32, takes uint8" in about
    assert "24 images (generated images): same label 24, largest difference" in about


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_int8(run: Callable[..., Result]) -> None:
    words = ["export", "run", "--format", "openvino", "--int8", "--calibration", "photos", "--max-drop", 100]
    result = run(*words, "--output", "int8")
    assert result.status == 0
    for expected in ("openvino, int8, takes uint8", " before, ", " after int8, on "):
        assert expected in result.out
    assert " after int8, on " in run("info", "int8").out
    export = load("int8").export
    assert export is not None
    assert export["accuracy"]["count"] > 0


WRONG = {
    "an unknown format": (["export", "run", "--format", "onxn"], ["onxn", "onnx"]),
    "an export of an export": (["export", "m.onnx"], ["m.onnx", "is an export: export"]),
    "int8 without images": (["export", "run", "--int8"], ["--calibration must be given for int8"]),
    "images without int8": (["export", "run", "--calibration", "photos"], ["--int8", "--check"]),
    "calibration with other classes": (
        ["export", "run", "--output", "new.onnx", "--int8", "--calibration", "pets"],
        ["only one of the two has", "ant, bee, dog"],
    ),
    "a tolerance that nothing meets": (
        ["export", "run", "--format", "pt2", "--output", "new.pt2", "--tolerance", 0],
        ["new.pt2 was not written", "differs by"],
    ),
    "a drop without int8": (["export", "run", "--max-drop", 0.1], ["--max-drop=0.1: needs int8"]),
    "a negative drop": (["export", "run", "--max-drop", -1], ["--max-drop=-1"]),
    "a negative tolerance": (["export", "run", "--tolerance", -1], ["--tolerance=-1.0: must be at least 0"]),
    "an export that is there, in ONNX": (
        ["export", "run", "--output", "m.onnx"],
        ["--output=m.onnx: already exists; remove it or name another"],
    ),
    "an export that is there, in OpenVINO": (
        ["export", "run", "--output", "m", "--format", "openvino"],
        ["--output=m: already exists; remove it or name another"],
    ),
    "an export that is there, in either": (
        ["export", "run", "--output", "m", "--format", "auto"],
        ["m.onnx: already exists; remove it or name another"],
    ),
    "less than no time": (["benchmark", "m.onnx", "--seconds", -1], ["--seconds=-1.0: must be at least 0"]),
    "a table of speeds of another kind": (
        ["benchmark", "m.onnx", "--output", "b.txt"],
        ["must end in .json"],
    ),
    "another runtime than the export's": (
        ["predict", "m.onnx", "photos", "--runtime", "openvino"],
        ["m.onnx", "skipnets export MODEL"],
    ),
    "a folder that is no export": (["predict", "empty", "photos"], ["empty"]),
    "a place that cannot be written": (
        ["export", "run", "--format", "auto", "--output", "text/m"],
        ["text/m", "cannot be written"],
    ),
}


def check_refusal(result: Result, place: Path, before: list[Path], expected: list[str]) -> None:
    assert result.status == 2
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert all(each in result.err for each in expected), result.err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_line(case: str, place: Path, run: Callable[..., Result]) -> None:
    words, expected = WRONG[case]
    before = sorted(place.rglob("*"))
    check_refusal(run(*words), place, before, expected)


@pytest.mark.parametrize(
    ("words", "missing", "install"),
    [
        (["export", "run", "--output", "new.onnx"], "onnx", 'this needs the extra "deploy": pip install'),
        (
            ["export", "run", "--output", "new", "--format", "openvino"],
            "openvino",
            'this needs the extra "deploy": pip install',
        ),
        (
            ["export", "run", "--int8", "--calibration", "photos"],
            "nncf",
            'this needs the extra "deploy": pip install',
        ),
        (["predict", "m", "photos"], "openvino", 'this needs the extra "deploy": pip install'),
        (["predict", "m.onnx", "photos"], "onnxruntime", 'pip install "onnxruntime"'),
        (["predict", "m.pt2", "photos"], "torch", 'this needs the extra "train": pip install'),
    ],
)
def test_what_is_not_installed(
    words: list[str],
    missing: str,
    install: str,
    place: Path,
    run: Callable[..., Result],
) -> None:
    before = sorted(place.rglob("*"))
    runtimes = (f"skipnets.runtimes.{module}" for module in ("onnxruntime", "openvino", "pt2", "torch"))
    with modules_imported_anew(*runtimes, missing=missing):
        result = run(*words)
    check_refusal(result, place, before, [install])


@pytest.mark.usefixtures("place")
def test_a_network_of_one_s_own_is_trusted_once_and_its_export_needs_none(run: Callable[..., Result]) -> None:
    own = "tests.helpers.own_networks:TinyNet"
    made_by = {"import": own, "arguments": {"num_classes": 2, "in_chans": 3}}
    network = TinyNet(2, 3).eval()
    preprocessing = Preprocessing(size=16)
    Classifier.from_model(
        network, classes=["cat", "dog"], preprocessing=preprocessing, architecture=made_by
    ).save("own.safetensors")
    image, trust = "pets/cat/0.png", ("--trust", own)
    exporting = ("export", "own.safetensors", "--format", "pt2", "--output", "own.pt2")
    for words in (("predict", "own.safetensors", image), exporting):
        refused = run(*words)
        assert refused.status == 2
        assert f"(--trust {own}), which imports and runs that" in refused.err
    assert "TinyNet" in run("info", "own.safetensors").out
    assert "24 of 24" in run(*exporting, *trust).out
    evaluated = [
        json.loads(run("evaluate", *words, "pets", "--split", "all", "--json").out)["nll"]
        for words in (("own.safetensors", *trust), ("own.pt2",))
    ]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)
    assert (
        run("predict", "own.pt2", image).out.split()[:2]
        == run("predict", "own.safetensors", image, *trust).out.split()[:2]
    )
    explained = run("explain", "own.safetensors", image, "--output", "map.png", *trust)
    assert explained.status == 0
    assert Path("map.png").stat().st_size > 0
