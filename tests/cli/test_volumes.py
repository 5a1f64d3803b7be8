"""The way of volumes and signals from a folder to predictions, by the commands."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from skipnets.classifier import load
from skipnets.cli import main
from skipnets.deploy import export_model

SMALL: list[object] = [
    "--model",
    "resnet8_w16",
    "--model-options.block-config",
    "[1,1]",
    "--model-options.width",
    8,
]
QUICK = [
    *SMALL,
    "--recipe",
    "scratch",
    "--ema",
    0,
    "--workers",
    0,
    "--accelerator",
    "cpu",
    "--logger",
    "csv",
    "--block-execution",
    "plain",
    "--no-channels-last",
]


def write_solids(root: Path, count: int = 48) -> Path:
    """Bright balls and thin bright rods of 14×16×18 voxels; every third is a compressed NIfTI file."""
    generator = np.random.default_rng(0)
    z, y, x = np.mgrid[:14, :16, :18]
    for number in range(count):
        label = "rod" if number % 2 else "ball"
        center = generator.integers(6, 9, 3)
        squared = (z - center[0]) ** 2, (y - center[1]) ** 2, (x - center[2]) ** 2
        inside = squared[1] + squared[2] < 4 if number % 2 else sum(squared) < 25
        volume = (generator.normal(-700, 30, inside.shape) + 800 * inside).astype(np.float32)
        path = root / label / f"{number:02}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3:
            np.save(path, volume)
        else:  # from the right to the left, from the front to the back, from foot to head
            volume[:2] = np.nan  # nothing was measured there
            turned = np.ascontiguousarray(volume[:, ::-1, ::-1].transpose(2, 1, 0))
            nibabel.save(nibabel.Nifti1Image(turned, np.eye(4)), path.with_suffix(".nii.gz"))
    (root / "ball/broken.npy").write_bytes(b"\x93NUMPY")
    return root


def visible(page: str) -> str:
    """What a reader of a page sees, without settings."""
    page = re.sub(r"<(style|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    titles = " ".join(re.findall(r'data-title="([^"]*)"', page))
    return " ".join(re.sub(r"<[^>]*>", " ", page).split()) + titles


def speaks_of_images(text: str) -> list[str]:
    """Where a text has the word."""
    return re.findall(r".{0,40}\bimages?\b.{0,40}", text, flags=re.IGNORECASE)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_solids(tmp_path_factory.mktemp("solids") / "data")


@pytest.fixture(scope="module")
def trained_solids(solids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "solids"
    words = [
        "train",
        solids,
        "--dims",
        3,
        "--size",
        12,
        "--epochs",
        4,
        "--batch-size",
        8,
        "--out",
        out,
        *QUICK,
    ]
    assert main([str(word) for word in words]) == 1  # one file cannot be read
    return out


def test_a_run_on_a_folder_says_what_it_does(trained_solids: Path, solids: Path) -> None:
    config = (trained_solids / "run.yaml").read_text()
    assert "dims: 3" in config
    assert "augmentation: shift" in config
    assert "fit: stretch" in config
    classifier = load(trained_solids)
    assert classifier.preprocessing.size == (12, 12, 12)
    [(low, high)] = classifier.preprocessing.window  # type: ignore[misc]
    assert -800 < low < -700
    assert 100 < high < 200
    assert [row["path"] for row in rows_of(trained_solids / "skipped.csv")] == ["ball/broken.npy"]
    assert json.loads((trained_solids / "evaluation.json").read_text())["accuracy"] == 1


def test_predictions_and_an_evaluation_of_files(
    trained_solids: Path, solids: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipnets.data.volume_files._said", set())
    result = run("predict", trained_solids, solids, "--output", tmp_path / "predictions.csv")
    assert result.status == 1
    assert "broken.npy: " in result.err
    assert result.err.count("in volumes they count as the lower end of the window") == 1
    rows = rows_of(tmp_path / "predictions.csv")
    assert len(rows) == 49
    right = [row["label"] == Path(row["path"]).parent.name for row in rows if not row["error"]]
    assert np.mean(right) > 0.9
    result = run("evaluate", trained_solids, solids, "--split", "all", "--json")
    found = json.loads(result.out)
    assert found["images"] == 48
    assert found["accuracy"] == pytest.approx(np.mean(right))
    np.save(tmp_path / "plane.npy", np.zeros((5, 5)))
    result = run("predict", trained_solids, tmp_path / "plane.npy")
    assert "must be (D, H, W) of numbers for a volume, or have channels as well, not float64" in result.err
    result = run("predict", trained_solids, tmp_path)
    assert result.status == 1


def test_sets_and_outliers_of_volumes(trained_solids: Path, solids: Path, tmp_path: Path, run) -> None:
    model = tmp_path / "model.safetensors"
    shutil.copy(trained_solids / "model.safetensors", model)
    shutil.copy(trained_solids / "splits.csv", tmp_path)
    result = run("calibrate", model, "--split", "val", "--tta", "flip")
    assert result.status in (0, 1), result.err
    assert "AUROC against altered volumes" in result.out
    words = ("--tta", "flip", "--coverage", 0.5, "--reject", 0.2, "--json")
    [found] = json.loads(run("predict", model, solids / "rod/01.npy", *words).out)["predictions"]
    assert "prediction_set" in found
    assert isinstance(found["rejected"], bool)


def test_a_volume_is_explained_by_three_planes(
    trained_solids: Path, solids: Path, tmp_path: Path, run
) -> None:
    words = ("--output", tmp_path / "seen.png", "--classes", "ball")
    assert run("explain", trained_solids, solids / "ball/02.npy", *words).status == 0
    [path] = (tmp_path / "seen").glob("*.npy")
    found = np.load(path)
    assert found.shape == (14, 16, 18)
    with Image.open(path.with_suffix(".png")) as image:
        assert min(image.size) > 200
    inside = np.load(solids / "ball/02.npy") > -300
    assert found[inside].mean() > found[~inside].mean()


def test_what_is_of_images_alone_says_so(trained_solids: Path, solids: Path, tmp_path: Path, run) -> None:
    for words, message in (
        (("reuse", trained_solids, "--output", tmp_path / "a.png"), "reuse: takes models of images"),
        (("audit", solids, "--dims", "3"), "dims=3: an audit looks at images, not at volumes"),
        (
            ("shard", solids, "--out", tmp_path / "s", "--dims", "3"),
            "dims=3: shards hold images; train on the folder",
        ),
        (("data", solids, "--dims", "3", "--page", "2"), "page=2: must not be given with --dims=3"),
        (
            ("evaluate", trained_solids, solids, "--dims", "1"),
            "dims=1: must be 3, as the model takes volumes",
        ),
        (("train", "digits", "--dims", "3", "--out", tmp_path / "r"), "dims=3: digits holds images"),
    ):
        result = run(*words)
        assert result.status == 2, words
        assert message in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.slow
def test_a_report_a_search_and_exports(trained_solids: Path, solids: Path, tmp_path: Path, run) -> None:
    assert run("report", trained_solids, "--output", tmp_path / "report.html").status == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") > 4
    assert speaks_of_images(visible(page)) == []
    (solids / "ball/broken.npy").unlink()
    sheet = tmp_path / "similar.png"
    assert run("search", trained_solids, solids, solids / "rod/01.npy", "--output", sheet).status == 0
    with Image.open(sheet) as image:
        assert image.width > 1000
    similar = run("search", trained_solids, solids, solids / "rod/01.npy", "--output", tmp_path / "s.html")
    assert speaks_of_images(similar.out + visible((tmp_path / "s.html").read_text())) == []
    classifier = load(trained_solids)
    batch = classifier.preprocess([solids / "rod/01.npy", solids / "ball/00.nii.gz"])
    for file_format, path in (("onnx", tmp_path / "m.onnx"), ("openvino", tmp_path / "m")):
        export_model(trained_solids / "model.safetensors", path, file_format=file_format)  # type: ignore[arg-type]
        np.testing.assert_allclose(load(path).logits(batch), classifier.logits(batch), atol=1e-3)
    words = ("benchmark", trained_solids, "--seconds", 0, "--batch-size", 1, "--no-compiled")
    result = run(*words)
    assert result.status == 0
    said = " ".join(result.out.split())
    assert "volumes of 12×12×12" in said
    assert "skipnets, OpenVINO int8" in said


@pytest.mark.slow
@pytest.mark.parametrize("task", ["single-label", "multi-label", "regression"])
def test_nothing_that_is_said_of_volumes_in_folds_speaks_of_images(task: str, tmp_path: Path, run) -> None:
    solids = write_solids(tmp_path / "solids")
    (solids / "ball/broken.npy").unlink()
    columns = {"single-label": "label", "multi-label": "ball,rod", "regression": "size,bright"}
    lines = [f"path,split,patient_id,{columns[task]}"]
    for number, path in enumerate(sorted(solids.rglob("[0-9]*"))):
        ball = path.parent.name == "ball"
        values = {
            "single-label": path.parent.name,
            "multi-label": f"{ball:d},{'' if number == 3 else 1 - ball}",
            "regression": f"{number},{'' if number == 5 else 3 * ball + number % 4}",
        }
        split = "test" if number // 2 % 4 == 0 else "train"
        lines.append(f"{path.relative_to(tmp_path)},{split},{number // 2},{values[task]}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines))
    words = ["--targets", "size", "bright"] if task == "regression" else []
    words += ["--task", task, "--dims", 3, "--size", 12, "--batch-size", 8, "--augmentation", "shift"]
    words += ["--group-column", "patient_id", *QUICK]
    folders = []
    for seed in (0, 1):
        out = tmp_path / f"run{seed}"
        again = ["--splits", folders[0] / "splits.csv"] if folders else []
        trained = run(
            "train", manifest, *words, *again, "--folds", 2, "--epochs", 1, "--seed", seed, "--out", out
        )
        assert trained.status == 0, trained.err
        assert speaks_of_images(trained.out + trained.err) == []
        assert "volumes" in trained.out
        folders.append(out)
    assert run("report", folders[0]).status == 0
    page = visible((folders[0] / "report.html").read_text())
    assert "volumes in 2 folds" in page
    assert speaks_of_images(page) == []
    compared = run("compare", *folders)
    assert compared.status == 0, compared.err
    assert speaks_of_images(compared.out + compared.err) == []
    assert "volumes" in compared.out


@pytest.mark.slow
def test_volumes_of_other_channels_are_left_out_of_training(tmp_path: Path, run) -> None:
    solids = write_solids(tmp_path / "solids", 24)
    (solids / "ball/broken.npy").unlink()
    for label, number in (("ball", 90), ("rod", 91)):
        np.save(solids / label / f"{number}.npy", np.zeros((14, 16, 18, 2), np.float32))
    words = ["--dims", 3, "--size", 12, "--batch-size", 8, *QUICK]
    out = tmp_path / "run"
    refused = run("train", solids, *words, "--epochs", 1, "--out", out)
    assert refused.status == 2
    assert "volumes of 1 and 2 channels are mixed" in refused.err
    assert "--channels trains on those of one number" in refused.err
    trained = run("train", solids, *words, "--epochs", 1, "--channels", 1, "--out", out)
    assert trained.status == 0, trained.err
    left_out = "2 of 26 volumes have 2 channels, not 1, and are left out, such as ball/90.npy"
    assert left_out in " ".join(trained.err.split())
    assert len(rows_of(out / "splits.csv")) == 24
    resumed = run("train", "--resume", out, "--epochs", 2)
    assert resumed.status == 0, resumed.err
    assert run("evaluate", out).status == 0
    more = ["--folds", 2, "--epochs", 1, "--channels", 1]
    folds = run("train", solids, *words, *more, "--out", tmp_path / "f")
    assert folds.status == 0, folds.err
    assert left_out in " ".join(folds.err.split())
    assert load(tmp_path / "f").preprocessing.channels == 1


@pytest.mark.slow
def test_signals_from_a_manifest_with_groups(tmp_path: Path, run) -> None:
    generator = np.random.default_rng(0)
    lines = ["path,label,patient_id"]
    for number in range(60):
        wave = np.sin(np.arange(100 + number) / (3 if number % 2 else 9)) + generator.normal(
            0, 0.2, 100 + number
        )
        np.savetxt(tmp_path / f"{number}.csv", wave)
        lines.append(f"{number}.csv,{'fast' if number % 2 else 'slow'},{number // 4}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    words = ["--dims", 1, "--group-column", "patient_id", "--folds", 2, "--epochs", 8, "--batch-size", 8]
    result = run("train", tmp_path / "manifest.csv", *words, "--out", tmp_path / "run", *QUICK)
    assert result.status == 0, result.err
    assert speaks_of_images(result.out + result.err) == []
    classifier = load(tmp_path / "run")
    [(low, high)] = classifier.preprocessing.window  # type: ignore[misc]
    assert low < -3.5  # as far again as the percentiles reach: no peak is clipped
    assert high > 3.5
    assert classifier.preprocessing.fit == "center"
    assert classifier.predict(tmp_path / "1.csv")[0].label == "fast"
    seen = tmp_path / "seen.png"
    assert run("explain", tmp_path / "run", tmp_path / "1.csv", "--output", seen).status == 0
    [path] = (tmp_path / "seen").glob("*.npy")
    assert np.load(path).shape == (101,)
