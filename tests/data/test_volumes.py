"""Signals and volumes as datasets and as input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.loading import evaluation_batches, training_loader
from skipnets.data.options import DataOptions
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey
from skipnets.data.volumes import VolumeDataset
from skipnets.data.window import measure_window
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
        axes=values.ndim - 2,
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


@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 5, 6), (2, 4, 5, 5)])
def test_channels_in_memory_are_last_however_many_there_are(shape: tuple[int, ...]) -> None:
    values = GENERATOR.integers(0, 9, (4, *shape), dtype=np.int16)
    found = dataset(values)
    assert (*found.sides, found.channels) == shape
    np.testing.assert_array_equal(found.values(1, found.channels).array, values[1])


def test_a_file_of_an_array_is_read(tmp_path: Path) -> None:
    signal = GENERATOR.integers(0, 256, 50, dtype=np.uint8)
    preprocessing = Preprocessing((50,), channels=1)
    np.save(tmp_path / "signal.npy", signal)
    found = preprocessing(tmp_path / "signal.npy")
    np.testing.assert_array_equal(found, preprocessing(signal))
    assert found.shape == (1, 50)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ImageDecodeError, match=r"broken.npy: "):
        preprocessing(tmp_path / "broken.npy")


def test_what_is_no_volume_is_said() -> None:
    preprocessing = Preprocessing((4, 5, 6), channels=1, window=(0, 1))
    for source, message in (
        (np.zeros((4, 5)), r"must be \(D, H, W\) of numbers .*, not float64 of shape \(4, 5\)"),
        (np.zeros((4, 5, 6, 2)), "has 2 channels where 1 are expected"),
        (np.full((4, 5, 6), np.inf), "has infinite values"),
        ("scan.nii.gz", "scan.nii.gz: no such file"),
    ):
        with pytest.raises(ImageDecodeError, match=message):
            preprocessing.pixels(source)
    with pytest.raises(ImageDecodeError, match="must be uint8, as the training's values were, not float64"):
        Preprocessing((4,), channels=1).pixels(np.zeros(4))
    for call in (lambda: preprocessing.open(np.zeros((4, 5, 6))), lambda: preprocessing.geometry(5, 6)):
        with pytest.raises(UserError, match="takes models of images, not of volumes"):
            call()
    with pytest.raises(UserError, match=r"size=\(4, 5, 6\): must be of images for the window of a file"):
        Preprocessing((4, 5, 6), channels=1, window="voi")
    with pytest.raises(UserError, match="volumes: takes models of signals or volumes, not of images"):
        Preprocessing(8).open_volume(np.zeros((4, 5, 6)))
    with pytest.raises(UserError, match="only images are"):
        dataset(np.zeros((2, 4, 5, 6, 1))).open(0)


def test_where_there_is_no_value_a_volume_is_black(monkeypatch: pytest.MonkeyPatch) -> None:
    values = GENERATOR.normal(100, 40, (9, 5, 6, 2)).astype(np.float32)
    values[:3] = np.nan
    preprocessing = Preprocessing((9, 5, 6), channels=2, window=(-50, 250))
    found = preprocessing.pixels(values)
    expected = np.clip((np.nan_to_num(values, nan=-50).astype(np.float64) + 50) * (255 / 300), 0, 255)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    monkeypatch.setattr("skipnets.data.preprocessing._VALUES_AT_ONCE", 120)  # two planes at once
    np.testing.assert_array_equal(preprocessing.pixels(values), found)
    volumes = dataset(np.stack([values] * 2))
    assert measure_window(volumes, range(2), channels=2).lowest == np.nanmin(values)


def test_it_travels_as_json_and_says_its_size() -> None:
    preprocessing = Preprocessing((4, 5, 6), channels=1, window=(-1000, 400))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert (preprocessing.dims, preprocessing.summary()) == (3, "4×5×6, pad, window -1000 to 400")


def test_volumes_of_another_size_are_fitted() -> None:
    volume = np.zeros((2, 4, 4), np.uint8)
    volume[:, :, 2:] = 200
    for fit, expected in (
        ("stretch", [[0, 0, 200, 200]] * 4),
        ("center", [[0, 0, 200, 200]] * 4),
        ("pad", [[0, 0, 200, 200]] * 4),
    ):
        found = Preprocessing((4, 4, 4), fit=fit, channels=1, mean=[0.4]).pixels(volume)[..., 0]
        np.testing.assert_array_equal(found[1], expected)
        assert found[0, 0, 0] == (0 if fit == "stretch" else 102)  # padded with the mean, where it is
    signal = Preprocessing((3,), fit="center", channels=1).pixels(np.arange(7, dtype=np.uint8))
    np.testing.assert_array_equal(signal[:, 0], [2, 3, 4])


def test_a_dataset_tells_its_axes_and_its_window() -> None:
    values = GENERATOR.normal(size=(6, 4, 5, 6, 2)).astype(np.float32)
    values[0, 0, 0, 0, 0] = 1e9  # one outlier does not decide it
    volumes = dataset(values)
    assert isinstance(volumes.select(np.array([0, 2])), VolumeDataset)
    assert (volumes.dims, volumes.sides, volumes.channels, volumes.bits) == (3, (4, 5, 6), 2, 32)
    measured = measure_window(volumes, range(6), channels=2)
    for channel in range(2):
        expected = np.percentile(values[..., channel], (0.5, 99.5))
        np.testing.assert_allclose(measured.window[channel], expected, atol=1e-2)
    assert measured.highest == np.float32(1e9)
    assert survey(volumes, "volumes").sizes == {"train": 6}
    assert ImageDataset.dims.fget(volumes) == 2  # type: ignore[attr-defined]


def test_a_folder_of_volumes(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / ("near" if number % 2 else "far") / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, GENERATOR.normal(size=(80, 100, 90 + 10 * (number % 3))).astype(np.float32))
    (tmp_path / "far/broken.npy").write_bytes(b"x")
    (tmp_path / "far/notes.csv").write_text("1,2")
    found = find_dataset(tmp_path, fractions=None, options=DataOptions(dims=3))
    assert isinstance(found, VolumeDataset)
    # By the medians of all axes, with 64 voxels at most.
    assert (found.sides, found.channels, found.bits) == ((51, 64, 64), 1, 32)
    about = survey(found, "scans")
    assert list(about.unreadable) == ["far/broken.npy"]
    assert about.passed_over == {".csv": 1}
    facts = about.facts()
    assert facts["volumes"] == "9 (test 9)"
    assert facts["size"] == "80×100×90 to 80×100×110 voxels (depth × height × width)"
    assert (about.to_dict()["depth"], about.to_dict()["width"]) == ([80, 80], [90, 110])
    (tmp_path / "no").mkdir()
    with pytest.raises(UserError, match=r"holds no signals \(.npy, .npz, .csv\)"):
        find_dataset(tmp_path / "no", options=DataOptions(dims=1))


@pytest.mark.parametrize("dims", [1, 3])
def test_those_of_other_channels_are_left_out_and_counted(tmp_path: Path, dims: int) -> None:
    kind, sides = {1: "signals", 3: "volumes"}[dims], (9, 8, 7)[:dims]
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(5):
            channels = 2 if number == 4 else 1
            values = GENERATOR.normal(size=(*sides, channels))
            np.save(tmp_path / label / f"{number}.npy", values[..., 0] if number == 0 else values)
    np.save(tmp_path / "a/rgb.npy", GENERATOR.normal(size=(*sides, 3)))
    (tmp_path / "b/broken.npy").write_bytes(b"x")
    options = DataOptions(dims=dims)  # type: ignore[arg-type]
    found = find_dataset(tmp_path, fractions=None, options=options, channels=1)
    assert (len(found), found.channels) == (9, 1)
    assert {"a/4.npy", "b/4.npy", "a/rgb.npy"}.isdisjoint(found.names)
    assert "b/broken.npy" in found.names  # which is reported where it is read
    assert found.listing.warnings == [
        f"3 of 12 {kind} have 2 or 3 channels, not 1, and are left out, such as a/4.npy"
    ]
    assert len(find_dataset(tmp_path, fractions=None, options=options, channels=4)) == 12
    with pytest.raises(UserError, match=f"channels=3: leaves no {kind} of class b, which have others"):
        find_dataset(tmp_path, fractions=None, options=options, channels=3)
    mixed = f"channels: {kind} of 1 and 2 and 3 channels are mixed, .*--channels trains on"
    with pytest.raises(UserError, match=mixed):
        find_dataset(tmp_path, fractions=None, options=options).channels  # noqa: B018


def test_sizes_of_signals_and_of_mixed_channels(tmp_path: Path) -> None:
    for length in (50, 70, 5000):
        for label in "ab":
            (tmp_path / label).mkdir(exist_ok=True)
            np.savetxt(tmp_path / label / f"{length}.csv", GENERATOR.normal(size=(length, 2)), delimiter=",")
    found = find_dataset(tmp_path, fractions=None, options=DataOptions(dims=1))
    assert (found.dims, found.sides, found.channels) == (1, (4096,), 2)  # type: ignore[attr-defined]
    np.save(tmp_path / "a/one.npy", np.zeros(9))
    found = find_dataset(tmp_path, fractions=None, options=DataOptions(dims=1))
    with pytest.raises(UserError, match="channels: signals of 1 and 2 channels are mixed"):
        found.channels  # noqa: B018
    with pytest.raises(UserError, match="dims=3: digits holds images, not volumes"):
        find_dataset("digits", options=DataOptions(dims=3))
