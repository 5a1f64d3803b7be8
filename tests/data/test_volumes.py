"""Signals and volumes as datasets and as input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.loading import evaluation_batches, training_loader
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.survey import survey
from skipnets.data.volumes import VolumeDataset, value_range
from skipnets.errors import UserError

GENERATOR = np.random.default_rng(0)


def dataset(values: np.ndarray) -> VolumeDataset:
    count = len(values)
    return VolumeDataset(
        classes=("a", "b"),
        names=[f"volume/{index}" for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.array(["train"] * count, dtype="<U5"),
        images=values,
    )


def test_values_are_scaled_as_a_slow_loop_does() -> None:
    values = GENERATOR.normal(100, 40, (6, 4, 5, 6, 2)).astype(np.float32)
    preprocessing = Preprocessing((4, 5, 6), channels=2, window=(-50, 250), mean=(0.4, 0.5), std=(0.2, 0.1))
    expected = np.empty((6, 2, 4, 5, 6))
    for channel, (mean, std) in enumerate(((0.4, 0.2), (0.5, 0.1))):
        expected[:, channel] = (np.clip((values[..., channel] + 50) / 300, 0, 1) - mean) / std
    np.testing.assert_allclose(preprocessing.batch(list(values)), expected, atol=1e-5)
    (batch,) = evaluation_batches(dataset(values), preprocessing, batch_size=6)
    np.testing.assert_allclose(batch.inputs, expected, atol=1e-5)
    loader = training_loader(dataset(values), preprocessing, batch_size=6, seed=1)
    (images, labels, index), *_ = loader
    shown = (images.numpy() / 255 - np.array([0.4, 0.5]).reshape(1, 2, 1, 1, 1)) / np.array(
        [0.2, 0.1]
    ).reshape(1, 2, 1, 1, 1)
    np.testing.assert_allclose(shown, expected[index.numpy()], atol=1e-5)
    assert labels.tolist() == [position % 2 for position in index.tolist()]


def test_a_file_of_an_array_is_read(tmp_path: Path) -> None:
    signal = GENERATOR.integers(0, 256, 50, dtype=np.uint8)
    preprocessing = Preprocessing((50,), channels=1)
    np.save(tmp_path / "signal.npy", signal)
    found = preprocessing(tmp_path / "signal.npy")
    np.testing.assert_array_equal(found, preprocessing(signal))
    assert found.shape == (1, 50)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ImageDecodeError, match=r"broken.npy: is no array of numbers"):
        preprocessing(tmp_path / "broken.npy")


def test_what_is_no_volume_of_the_size_is_said() -> None:
    preprocessing = Preprocessing((4, 5, 6), channels=1, window=(0, 1))
    for source, message in (
        (np.zeros((4, 5, 7)), r"must be 4×5×6 numbers of 1 channel, not float64 of shape \(4, 5, 7\)"),
        (np.full((4, 5, 6), np.nan), "has values that are not finite"),
        ("scan.nii.gz", r"scan.nii.gz: must be an array of 4×5×6 numbers, in memory or in a .npy file"),
    ):
        with pytest.raises(ImageDecodeError, match=message):
            preprocessing.pixels(source)
    with pytest.raises(ImageDecodeError, match="must be uint8, as the training's values were, not float64"):
        Preprocessing((4,), channels=1).pixels(np.zeros(4))
    for call in (lambda: preprocessing.open(np.zeros((4, 5, 6))), lambda: preprocessing.geometry(5, 6)):
        with pytest.raises(UserError, match="takes models of images, not of volumes"):
            call()
    with pytest.raises(UserError, match=r"size=\(4, 5, 6\): must be of images for a fit"):
        Preprocessing((4, 5, 6), fit="crop")
    with pytest.raises(UserError, match="only images are"):
        dataset(np.zeros((2, 4, 5, 6, 1))).open(0)


def test_it_travels_as_json_and_says_its_size() -> None:
    preprocessing = Preprocessing((4, 5, 6), channels=1, window=(-1000, 400))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert (preprocessing.dims, preprocessing.summary()) == (3, "4×5×6, window -1000 to 400")


def test_a_dataset_tells_its_axes_and_its_range() -> None:
    values = GENERATOR.normal(size=(6, 4, 5, 6, 2)).astype(np.float32)
    volumes = dataset(values)
    assert isinstance(volumes.select(np.array([0, 2])), VolumeDataset)
    assert (volumes.dims, volumes.sides, volumes.channels, volumes.bits) == (3, (4, 5, 6), 2, 32)
    assert value_range(volumes, range(6)) == (values.min(), values.max())
    low, high = value_range(dataset(np.full((2, 8, 1), 7.0, np.float32)), range(2))
    assert low < 7 < high
    assert survey(volumes, "volumes").sizes == {"train": 6}
    assert ImageDataset.dims.fget(volumes) == 2  # type: ignore[attr-defined]
