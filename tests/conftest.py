"""What several test modules share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from tests.helpers.classifiers import make_classifier
from tests.helpers.disks import TARGETS, write_disks
from tests.helpers.labels import write_tiles
from tests.helpers.serving import write_colors_onnx

# Triton reads this when a kernel is defined: without a GPU, kernels are run by its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# What is measured on this machine is kept, but not in the cache of whoever runs the tests.
if not os.environ.get("XDG_CACHE_HOME"):
    _CACHE = tempfile.TemporaryDirectory(prefix="skipnets-cache-")
    os.environ["XDG_CACHE_HOME"] = _CACHE.name

# How long one example takes says more about the machine's other work than about what is tested.
hypothesis.settings.register_profile("skipnets", deadline=None)
hypothesis.settings.load_profile("skipnets")

if TYPE_CHECKING:
    from skipnets.classifier import Classifier
    from skipnets.deploy.export import Export
    from skipnets.training import Run


@pytest.fixture(autouse=True)
def _fixed_seed() -> Iterator[None]:
    """The same numbers in every order of the tests; `skipnets.load(threads=…)` holds for the process."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that use it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def exported_classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A small classifier, opened from its file."""
    from skipnets.classifier import load

    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    make_classifier().save(path)
    return load(path, runtime="torch", device="cpu")


@pytest.fixture(scope="session")
def exports(exported_classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """Its exports by format, from uint8 pixels."""
    from skipnets.deploy.export import TOLERANCE, Exporter
    from skipnets.deploy.verification import check_images

    folder = tmp_path_factory.mktemp("exports")
    exporter = Exporter(  # One for all of them, because tracing takes most of the time.
        classifier=exported_classifier,
        input_type="uint8",
        check=check_images(exported_classifier, None),
        tolerance=TOLERANCE,
        quantization=None,
    )
    names = {"onnx": "m.onnx", "openvino": "m", "pt2": "m.pt2"}
    return {file_format: exporter.write(folder / name, file_format) for file_format, name in names.items()}


@pytest.fixture(scope="session")
def colors_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a classifier of colors whose network is three means."""
    return write_colors_onnx(tmp_path_factory.mktemp("colors") / "model.onnx")


@pytest.fixture(scope="session")
def label_folds_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two folds that was trained on images with several labels, by group, with a test split."""
    from skipnets.training import TrainConfig, train

    folder = tmp_path_factory.mktemp("label-folds")
    config = TrainConfig(
        data=str(write_tiles(folder / "tiles", 80, test=20)),
        out=folder / "run",
        folds=2,
        model="densenet_bc40_k12",
        model_options={"block_config": [1, 1], "growth_rate": 4},
        group_column="patient",
        epochs=2,
        batch_size=16,
        lr=0.05,
        augmentation="none",
        duplicates="ignore",
        recipe="scratch",
        block_execution="plain",
        channels_last=False,
        workers=0,
        accelerator="cpu",
    )
    return train(config)


@pytest.fixture(scope="session")
def label_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was trained on images with several labels, by group."""
    from skipnets.training import TrainConfig, train

    folder = tmp_path_factory.mktemp("labels")
    config = TrainConfig(
        data=str(write_tiles(folder / "tiles")),
        out=folder / "run",
        model="densenet_bc40_k12",
        model_options={"block_config": [2, 2], "growth_rate": 8},
        group_column="patient",
        epochs=6,
        batch_size=16,
        lr=0.05,
        augmentation="none",
        duplicates="ignore",
        workers=0,
        accelerator="cpu",
    )
    return train(config)


def _train_on_numbers(folder: Path, data: Path, **fields: Any) -> Run:
    """A run of the smallest network that predicts two numbers of an image, with all choices made."""
    from skipnets.training import TrainConfig, train

    config = TrainConfig(
        data=str(data),
        out=folder / "run",
        targets=TARGETS,
        model="resnet8_w16",
        block_execution="plain",
        channels_last=False,
        operators={},
        group_column="patient",
        batch_size=16,
        lr=0.05,
        augmentation="none",
        duplicates="ignore",
        workers=0,
        accelerator="cpu",
        **fields,
    )
    return train(config)


@pytest.fixture(scope="session")
def number_folds_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two folds that predicts two numbers, of which one is not known of all images."""
    folder = tmp_path_factory.mktemp("number-folds")
    data = write_disks(folder / "disks", 60, test=16, unknown=3)
    return _train_on_numbers(folder, data, folds=2, model_options={"width": 4}, epochs=2)


@pytest.fixture(scope="session")
def number_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was trained to predict two numbers of an image, by group."""
    folder = tmp_path_factory.mktemp("numbers")
    return _train_on_numbers(folder, write_disks(folder / "disks"), model_options={"width": 8}, epochs=8)
