"""Named sets: what comes with a library or a package, and files of torchvision's layouts made up here."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import struct
import tarfile

import numpy as np
import pytest
import scipy.io
from sklearn.datasets import load_digits
from torchvision import datasets

from skipnets.data import named, open_dataset
from skipnets.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty folder of data sets, and no network."""

    def refuse(*_):
        raise OSError("no network in tests")

    monkeypatch.setenv("SKIPNETS_DATA", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


RANDOM = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, *, zipped):
    folder.mkdir(parents=True)
    arrays = {}
    for split, count in (("train", 40), ("t10k", 12)):
        arrays[split] = (
            RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            np.arange(count, dtype=np.uint8) % 10,
        )
        for array, kind in zip(arrays[split], ("images-idx3", "labels-idx1"), strict=True):
            data = idx(array)
            path = folder / f"{split}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return arrays


def test_digits():
    dataset = open_dataset("digits")
    assert len(dataset) == 1797
    assert dataset.channels == 1
    assert dataset.names[:2] == ["digits/00000", "digits/00001"]
    np.testing.assert_array_equal(dataset.images, np.rint(load_digits().images * 15.9375))
    np.testing.assert_array_equal(dataset.labels, load_digits().target)
    assert [round(len(dataset.split(split)) / 1797, 2) for split in ("train", "val", "test")] == [
        0.7,
        0.15,
        0.15,
    ]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files(home, name, folder, zipped, monkeypatch):
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", home / "absent")
    arrays = write_idx(home / folder / "raw", zipped=zipped)
    dataset = open_dataset(name)
    assert len(dataset.split("test")) == 12
    assert len(dataset.split("train")) + len(dataset.split("val")) == 40
    np.testing.assert_array_equal(dataset.images, np.concatenate([arrays["train"][0], arrays["t10k"][0]]))
    np.testing.assert_array_equal(dataset.labels, np.concatenate([arrays["train"][1], arrays["t10k"][1]]))
    np.testing.assert_array_equal(np.asarray(dataset.open(41)), arrays["t10k"][0][1])
    assert dataset.names[41] == f"{name}/test/00001"


def test_debian_package():
    if not named.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    dataset = open_dataset("fashion-mnist")
    assert len(dataset) == 70_000
    assert len(dataset.split("test")) == 10_000
    assert dataset.classes[9] == "Ankle boot"
    assert np.bincount(dataset.labels).tolist() == [7000] * 10
    assert dataset.labels[0] == 9  # the first image is a boot


def test_damaged_idx_file(home):
    write_idx(home / "MNIST" / "raw", zipped=True)
    path = home / "MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: not a whole IDX file"):
        open_dataset("mnist")


def write_cifar(home, monkeypatch, name, archive):
    """A small archive in torchvision's layout, whose hashes torchvision is told to expect."""
    dataset = getattr(datasets, name)
    folder = home / dataset.base_folder
    folder.mkdir()
    key = "labels" if name == "CIFAR10" else "fine_labels"
    pixels = []
    for files in ("train_list", "test_list"):
        expected = []
        for file, _ in getattr(dataset, files):
            data = RANDOM.integers(0, 256, (20, 3072), dtype=np.uint8)
            pixels.append(data)
            (folder / file).write_bytes(pickle.dumps({"data": data, key: [n % 10 for n in range(20)]}))
            expected.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
        monkeypatch.setattr(dataset, files, expected)
    labels = {dataset.meta["key"]: [f"class {n}" for n in range(10)]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(labels))
    digest = hashlib.md5((folder / dataset.meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": digest})
    if archive:
        with tarfile.open(home / dataset.filename, "w:gz") as file:
            file.add(folder, dataset.base_folder)
        monkeypatch.setattr(
            dataset, "tgz_md5", hashlib.md5((home / dataset.filename).read_bytes()).hexdigest()
        )
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    return np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(("name", "torchvision_name"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar(home, monkeypatch, name, torchvision_name, archive):
    expected = write_cifar(home, monkeypatch, torchvision_name, archive)
    dataset = open_dataset(name)
    np.testing.assert_array_equal(dataset.images, expected)
    assert dataset.classes == tuple(f"class {n}" for n in range(10))
    assert len(dataset.split("test")) == 20
    assert dataset.channels == 3


def test_svhn(home, monkeypatch):
    (home / "svhn").mkdir()
    expected = {}
    for split in ("train", "test"):
        data = RANDOM.integers(0, 256, (32, 32, 3, 30), dtype=np.uint8)
        path = home / "svhn" / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": data, "y": (np.arange(30) % 10 + 1)[:, None]})
        url, file, _ = datasets.SVHN.split_list[split]
        expected[split] = [url, file, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", expected)
    dataset = open_dataset("svhn")
    assert dataset.images.shape == (60, 32, 32, 3)
    np.testing.assert_array_equal(dataset.images[59], data[..., 29])
    assert dataset.labels[9] == 0  # the file says 10 for the digit 0


FILES = {
    "mnist": ("train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images", "MNIST/raw"),
    "fashion-mnist": ("train-images-idx3-ubyte.gz", "FashionMNIST/raw"),
    "cifar10": ("cifar-10-python.tar.gz", ""),
    "cifar100": ("cifar-100-python.tar.gz", ""),
    "svhn": ("train_32x32.mat, test_32x32.mat", "svhn"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("download", [False, True])
def test_absent_sets_say_which_file_goes_where(home, name, download, monkeypatch):
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", home / "absent")
    files, folder = FILES[name]
    with pytest.raises(UserError) as caught:
        open_dataset(name, download=download)
    message = str(caught.value)
    assert f"put {files}" in message
    assert f" into {(home / folder) if folder else home}, or allow the download" in message
    assert ("could not be read" if download else "is not on this machine") in message
    assert "\n" not in message


def test_another_file_under_the_name_is_refused(home):
    (home / "cifar-10-batches-py").mkdir()
    (home / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"something else")
    with pytest.raises(
        UserError, match=r"cifar10 could not be read \(.*corrupted.*put cifar-10-python.tar.gz"
    ):
        open_dataset("cifar10")
