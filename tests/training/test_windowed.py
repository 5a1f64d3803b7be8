"""From scans of 12 bits, or many bands, to the same numbers everywhere, and to no patient's name anywhere."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from pyarrow import parquet
from tests.helpers.medical import NAME, PATIENT, STUDY, dicom_file
from tests.helpers.serving import served, wait_until

import skipnets
from skipnets.classifier import Classifier
from skipnets.cli import main
from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import evaluation_batches, training_loader, validation_loader
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.deploy.export import export_model
from skipnets.errors import UserError
from skipnets.insight import explain
from skipnets.report import write_report
from skipnets.runtimes.native import prefers_native
from skipnets.serve import create_app, find_examples
from skipnets.training import Run, TrainConfig, train
from skipnets.training.config import config_to_yaml
from skipnets.training.prepare import prepare
from skipnets.training.task import ClassificationTask

SIZE = (20, 24)
TINY = {
    "model": "densenet_bc40_k12",
    "model_options": {"block_config": [2, 2], "growth_rate": 4},
    "epochs": 1,
    "batch_size": 8,
    "augmentation": "flip",
    "workers": 0,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12-bit CT slices in Hounsfield units, two of each of 24 patients."""
    root = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    for index in range(48):
        folder = root / ("bright" if index // 2 % 2 else "dark")
        folder.mkdir(exist_ok=True)
        stored = random.normal(1100 + 60 * (index // 2 % 2), 40, SIZE).clip(0, 4095).astype(np.uint16)
        data = dicom_file(
            stored,
            bits=12,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            PatientName=f"{NAME}{index // 2}",
            PatientID=f"{PATIENT}-{index // 2}",
            StudyInstanceUID=f"{STUDY}.{index // 2}",
            PatientBirthDate="18070704",
        )
        (folder / f"{index:02}.dcm").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def run(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(TrainConfig(data=str(scans), out=tmp_path_factory.mktemp("out") / "run", **TINY))


def test_the_window_is_the_training_splits_and_recorded(run: Run, scans: Path) -> None:
    dataset = open_dataset(scans, splits=run.splits)
    values = np.concatenate(
        [pixels(dataset, index).ravel() for index in np.flatnonzero(dataset.splits == "train")]
    )
    classifier = skipnets.load(run, runtime="torch", device="cpu")
    [window] = classifier.preprocessing.window
    np.testing.assert_allclose(window, np.percentile(values, (0.5, 99.5)), atol=0.01)
    assert classifier.preprocessing.bits == 12
    assert run.config.window == window
    again = Preprocessing.from_dict(json.loads(json.dumps(classifier.preprocessing.to_dict())))
    assert again == classifier.preprocessing


def pixels(dataset: ImageDataset, index: int) -> np.ndarray:
    import pydicom

    return pydicom.dcmread(dataset.file(index)).pixel_array - 1024.0


def test_training_validation_runtimes_and_server_see_the_same(run: Run, scans: Path, tmp_path: Path) -> None:
    classifier = skipnets.load(run, runtime="torch", device="cpu")
    preprocessing = classifier.preprocessing
    val = open_dataset(scans, splits=run.splits).split("val")
    # By hand: windowed, in units of white, normalized.
    low, high = preprocessing.window[0]
    shown = np.stack([np.clip((pixels(val, index) - low) / (high - low), 0, 1) for index in range(len(val))])
    expected = ((shown - preprocessing.mean[0]) / preprocessing.std[0])[:, None]

    batch, _, _ = next(iter(validation_loader(val, preprocessing, batch_size=len(val))))
    assert batch.dtype == torch.float32
    task = ClassificationTask(classifier.model, run.config)  # type: ignore[arg-type]
    np.testing.assert_allclose(task.normalize(batch).numpy(), expected, atol=2e-5)
    inputs = classifier.preprocess(str(scans / "dark"))
    paths = [val.file(index) for index in range(len(val))]
    inputs = classifier.preprocess(paths)
    np.testing.assert_allclose(inputs, expected, atol=2e-5)

    logits = classifier.logits(inputs)
    export = export_model(run, tmp_path / "model.onnx", check=None)
    assert export.input_type == "float32"
    exported = skipnets.load(export.path)
    np.testing.assert_array_equal(exported.preprocess(paths), inputs)
    np.testing.assert_allclose(exported.logits(inputs), logits, atol=1e-5)
    if prefers_native("cpu"):
        np.testing.assert_allclose(skipnets.load(run, runtime="native").logits(inputs), logits, atol=1e-4)
    with pytest.raises(
        UserError, match="input=uint8: must be float32 for a model of images with more than 8"
    ):
        export_model(run, tmp_path / "bytes.onnx", input_type="uint8")

    expected_probabilities = classifier.probabilities(inputs)
    with served(create_app(exported)) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        answers = predictions(client, paths)
        numbers = np.stack([pixels(val, index) for index in range(len(val))])[..., None]
        rows = infer(client, exported, "FP32", numbers)
        np.testing.assert_allclose(rows, expected_probabilities, atol=1e-5)
        rows = infer(client, exported, "INT16", numbers)
        np.testing.assert_allclose(rows, expected_probabilities, atol=1e-5)
        np.testing.assert_allclose(infer(client, exported, "INT16", numbers.astype(int)), rows, atol=1e-5)
    for answer, row in zip(answers, expected_probabilities, strict=True):
        assert answer["error"] is None
        got = {each["label"]: each["probability"] for each in answer["ranking"]}
        np.testing.assert_allclose([got[name] for name in classifier.classes], row, atol=1e-5)


def infer(client: httpx.Client, classifier: Classifier, datatype: str, numbers: np.ndarray) -> np.ndarray:
    """Probabilities by the Open Inference Protocol, of images sent as numbers."""
    data = numbers.ravel().tolist()
    tensor = {"name": "images", "datatype": datatype, "shape": list(numbers.shape), "data": data}
    name = classifier.architecture["name"]
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()
    assert "outputs" in answer, answer
    [output] = [each for each in answer["outputs"] if each["name"] == "probabilities"]
    return np.reshape(output["data"], output["shape"])


def test_a_resumed_run_prepares_the_same(run: Run, scans: Path) -> None:
    again = prepare(run.config, open_dataset(scans, splits=run.splits))
    assert again.preprocessing == skipnets.load(run, runtime="torch").preprocessing


def test_each_files_own_window(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(24):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        stored = random.integers(0, 4096, SIZE, dtype=np.uint16)
        window = {"WindowCenter": 1000 + index, "WindowWidth": 500, "PatientID": f"{index}"}
        (tmp_path / "ab"[index % 2] / f"{index}.dcm").write_bytes(dicom_file(stored, bits=12, **window))
    dataset = open_dataset(tmp_path)
    default = prepare(TrainConfig(data=str(tmp_path), out=tmp_path / "run", **TINY), dataset)
    assert any("--voi takes the one in each DICOM file" in note for note in dataset.listing.notes)
    own = prepare(TrainConfig(data=str(tmp_path), out=tmp_path / "run", voi=True, **TINY), dataset)
    assert (default.preprocessing.bits, own.preprocessing.window, own.config.voi) == (12, "voi", True)
    assert prepare(own.config, dataset).preprocessing == own.preprocessing


def test_files_without_a_window_of_their_own_are_counted_once(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(scans)
    preprocessing = prepare(
        TrainConfig(data=str(scans), out=tmp_path / "run", voi=True, **TINY), dataset
    ).preprocessing
    [note] = [note for note in dataset.listing.notes if note.startswith("voi: ")]
    count = int((dataset.splits == "train").sum())
    assert f"{count} of the {count} files looked at have no window of their own" in note
    caplog.clear()
    list(evaluation_batches(dataset.split("val"), preprocessing))
    assert not caplog.messages


def test_a_window_that_no_value_lies_in_is_a_warning(scans: Path, tmp_path: Path) -> None:
    for window, color in (((5000, 6000), "black"), ((-6000, -5000), "white"), ((0, 200), "")):
        dataset = open_dataset(scans)
        prepare(TrainConfig(data=str(scans), out=tmp_path / "run", window=window, **TINY), dataset)
        found = [line for line in dataset.listing.warnings if line.startswith("window: nearly all values")]
        assert [line.endswith(f"the images are {color} all over") for line in found] == [True] * bool(color)


def test_voi_of_8_bits_changes_nothing_and_that_is_said(tmp_path: Path) -> None:
    for index in range(24):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        PIL.Image.new("L", SIZE, 10 * index).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    dataset = open_dataset(tmp_path)
    prepare(TrainConfig(data=str(tmp_path), out=tmp_path / "run", voi=True, **TINY), dataset)
    assert "voi: the images have 8 bits, and are taken as they are" in dataset.listing.notes


def test_examples_of_the_page_are_seen_through_the_window(run: Run, scans: Path) -> None:
    classifier = skipnets.load(run, runtime="torch", device="cpu")
    [example] = find_examples(scans / "dark", count=1, preprocessing=classifier.preprocessing)
    source = next(path for path in scans.rglob("*.dcm") if path.stem == example.name)
    seen = classifier.preprocess([PIL.Image.open(io.BytesIO(example.content)), source])
    np.testing.assert_allclose(seen[0], seen[1], atol=0.5 / 255 / classifier.preprocessing.std[0] + 1e-6)
    with pytest.raises(UserError, match="must not be given for a model of 5 bands"):
        find_examples(scans, preprocessing=Preprocessing(8, channels=5))


def predictions(client: httpx.Client, paths: list[Path]) -> list[dict[str, Any]]:
    files = [("files", (path.name, path.read_bytes())) for path in paths]
    return client.post("/v1/predict", files=files).json()["predictions"]


def test_nothing_that_identifies_a_patient_is_written(
    run: Run, scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    image, damaged = scans / "dark" / "00.dcm", scans.parent / "damaged.dcm"
    damaged.write_bytes(image.read_bytes()[:-100])
    folder = str(run.folder)
    for words in (
        ["data", str(scans), "--json", "--copies", str(out / "copies.csv")],
        [
            "evaluate",
            folder,
            "--output",
            str(out / "evaluation"),
            "--predictions",
            str(out / "p.csv"),
        ],
        ["predict", folder, str(image), str(damaged), "--output", str(out / "p.parquet")],
        ["predict", folder, str(image), str(damaged)],
        ["explain", folder, str(image), "--output", str(out / "seen.png")],
        ["info", folder],
        ["audit", str(scans), folder, "--output", str(out / "audit.html"), "--write", str(out / "clean.csv")],
    ):
        assert main(words) in (0, 1), words
    write_report(run, out / "report.html", workers=1)
    said = capfd.readouterr()
    written = said.out.encode() + said.err.encode()
    files = [path for folder in (run.folder, out) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        written += path.name.encode() + path.read_bytes()
        if path.suffix == ".parquet":
            written += str(parquet.read_table(path).to_pydict()).encode()
    assert b"patient " in written  # the groups, by number
    for secret in (NAME, PATIENT, STUDY, "18070704"):
        assert secret.encode() not in written, secret


def test_8_bit_images_are_taken_as_shown_and_that_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    classifier = skipnets.load(run, runtime="torch", device="cpu")
    shallow = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)
    inputs = classifier.preprocess([shallow])
    expected = (shallow / 255 - classifier.preprocessing.mean[0]) / classifier.preprocessing.std[0]
    np.testing.assert_allclose(inputs[0, 0], expected, atol=1e-5)
    assert "1 image of 8 bits, where the model was trained on 12: taken as shown, such as [0]" in caplog.text


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of five-band TIFF files."""
    root = tmp_path_factory.mktemp("bands")
    random = np.random.default_rng(0)
    for index in range(24):
        folder = root / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        field = random.normal(0, 1, (*SIZE, 5)) * [1, 10, 100, 1000, 0.1] + [0, 0, 500, 0, index % 2]
        tifffile.imwrite(
            folder / f"{index}.tif", field.astype(np.float32), photometric="minisblack", planarconfig="contig"
        )
    return root


@pytest.mark.parametrize("augmentation", ["crop-flip", "trivial", "resized-crop"])
def test_bands_are_augmented_unmixed(bands: Path, augmentation: str) -> None:
    windows = [(-3, 3), (-30, 30), (200, 800), (-3000, 3000), (-1, 2)]
    preprocessing = Preprocessing(SIZE, channels=5, window=windows, bits=32)
    dataset = open_dataset(bands, fractions=None)
    loader = training_loader(dataset, preprocessing, augmentation, batch_size=24, seed=3)
    [(batch, labels, index)] = list(loader)
    assert batch.shape == (24, 5, *SIZE)
    assert batch.dtype == torch.float32
    assert 0 <= float(batch.min()) < float(batch.max()) <= 255
    assert labels.tolist() == dataset.labels[index].tolist()
    again = training_loader(dataset, preprocessing, augmentation, batch_size=24, seed=3)
    torch.testing.assert_close(next(iter(again))[0], batch)


def test_bands_from_training_to_thumbnails(bands: Path, tmp_path: Path) -> None:
    run = train(TrainConfig(data=str(bands), out=tmp_path / "run", shown_channels=(5, 1, 3), **TINY))
    classifier = skipnets.load(run, runtime="torch", device="cpu")
    preprocessing = classifier.preprocessing
    assert (preprocessing.channels, len(preprocessing.window), len(preprocessing.mean)) == (5, 5, 5)
    np.testing.assert_allclose(preprocessing.mean, 0.5, atol=0.15)  # each band was windowed by itself
    path = next(bands.rglob("*.tif"))
    array = tifffile.imread(path)
    sources = [path, array, torch.from_numpy(array.transpose(2, 0, 1))]
    inputs = classifier.preprocess(sources)
    np.testing.assert_array_equal(inputs[0], inputs[1])
    np.testing.assert_array_equal(inputs[0], inputs[2])
    [[explanation]] = explain(classifier, path)
    shown = preprocessing.pixels(path)
    np.testing.assert_array_equal(np.asarray(explanation.image), np.rint(shown[:, :, [4, 0, 2]]))
    assert explanation.map().shape == SIZE
    report = write_report(run, tmp_path / "report.html", workers=1)
    assert "data:image/jpeg" in report.read_text()


@pytest.mark.slow
def test_published_weights_are_adapted_to_bands(bands: Path, tmp_path: Path) -> None:
    source = skipnets.create_model("densenet_bc40_k12", num_classes=7, block_config=(2, 2), growth_rate=4)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    config = TINY | {"weights": str(tmp_path / "weights.pth"), "out": tmp_path / "run"}
    run = train(TrainConfig(data=str(bands), **config))
    assert skipnets.load(run, runtime="torch").model.config.in_chans == 5
    assert len(run.config.mean or ()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (1, 2), "percentiles": (1, 99)}, "window: must be given without percentiles"),
        ({"voi": True, "percentiles": (1, 99)}, "percentiles: must be given without voi"),
        ({"window": (2, 1)}, r"window=\(2.0, 1.0\): must be two numbers, the lower one first"),
        ({"window": (1, 2, 3)}, "window=.*or 5 such pairs"),
        ({"channels": 4}, "none of the 16 training images .*tif: has 5 channels where 4 are expected"),
        ({"shown_channels": (1, 2, 6)}, r"shown_channels=\(1, 2, 6\): must be from 1 to 5"),
    ],
)
def test_impossible_options(bands: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(TrainConfig(data=str(bands), out=tmp_path / "run", **TINY, **options))


def test_chosen_windows_from_the_command_line(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(config_to_yaml(TrainConfig(data=str(scans), out=tmp_path, **TINY)))
    words = ["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words, "--window", "-160", "240"]) == 0
    preprocessing = skipnets.load(tmp_path / "run", runtime="torch").preprocessing
    assert preprocessing.window == ((-160, 240),)
