"""Servers of models of volumes and signals."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from tests.helpers.serving import Serving, detail, upload

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.serve import Limits
from skipnets.serve.examples import find_examples
from skipnets.serve.limits import BYTES_OF_VALUE

PREDICT = "/v1/predict"


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def volume(label: int, sides: tuple[int, ...] = (6, 4, 5)) -> np.ndarray:
    """Three channels, of which one is bright."""
    values = np.full((*sides, 3), -900, np.int16)
    values[..., label] = 100
    return values


@pytest.fixture
def volumes(serving: Serving, colors: Classifier) -> Callable[..., httpx.Client]:
    """Start a server of a model of volumes."""
    colors.preprocessing = Preprocessing((4, 4, 4), channels=3, window=(-1000, 400), bits=16, fit="stretch")

    def logits(batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1:] == (3, 4, 4, 4)
        return batch.mean(axis=(2, 3, 4), dtype=np.float32)

    colors.runtime.logits = logits  # type: ignore[method-assign]
    colors.runtime.input_type = "float32"  # type: ignore[misc]
    return serving


def test_files_of_volumes_are_answered_as_predict_does(
    volumes: Callable[..., httpx.Client], colors: Classifier
) -> None:
    client = volumes()
    files = upload(npy(volume(0)), npy(volume(2, (9, 9, 9))), npy(np.zeros((5, 5))))
    first, second, failed = client.post(PREDICT, files=files).json()["predictions"]
    expected = colors.predict([volume(0), volume(2, (9, 9, 9))])
    assert [first["label"], second["label"]] == ["red", "blue"] == [each.label for each in expected]
    assert first["probability"] == expected[0].probability
    assert failed["error"].startswith("must be (D, H, W) of numbers for a volume, or have channels as well")
    assert client.get("/v1/model").json()["preprocessing"]["size"] == [4, 4, 4]


def test_what_would_harm_is_refused(volumes: Callable[..., httpx.Client]) -> None:
    client = volumes(limits=Limits(pixels=1000))
    pickled = npy(np.array([{}], dtype=object), allow_pickle=True)
    for content, message in (
        (pickled, "of numbers for a volume, or have channels as well, not object"),
        (
            npy(np.zeros((20, 20, 20, 3))),
            "larger than 1,000 values, the most that is read; skipnets serve --max-megapixels allows more",
        ),
        (npy(np.full((2, 2, 2, 3), np.nan)), "has no finite value"),
        (npy(volume(0))[:200], ""),
        (b"GIF89a", "not a volume in a known format"),
    ):
        response = client.post(PREDICT, files=upload(content))
        assert message in detail(response, 422)
    tight = volumes(limits=Limits(memory=1000))
    refused = detail(tight.post(PREDICT, files=upload(npy(volume(0)))), 422)
    assert "MiB is the limit; skipnets serve --max-image-memory allows more" in refused
    narrow = volumes(limits=Limits(body_bytes=1000))
    response = narrow.post(PREDICT, files=upload(npy(volume(0, (9, 9, 9)))))
    assert "1,000 bytes, the limit; skipnets serve --max-megabytes allows more" in detail(response, 413)


def test_the_usual_limits_let_a_large_volume_in() -> None:
    limits = Limits.of_input(3, 1)
    file = npy(np.zeros((1, 256, 256), np.float32))
    assert limits.body_bytes > 256 * len(file)
    assert limits.pixels > 256**3
    assert limits.memory >= BYTES_OF_VALUE * 256**3
    assert Limits.of_input(2, 3) == Limits.of_input(1, 12) == Limits()
    assert Limits.of_input(3, 4000) == Limits.of_input(3, 4)  # they stay bounded


# Prints how many bytes a value takes at most while a file is read and fitted.
MEASURE = """
import sys
from pathlib import Path
from skipnets.data.preprocessing import Preprocessing

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

for fit, name, values, channels in zip(*[iter(sys.argv[1:])] * 4):
    preprocessing = Preprocessing(
        (48, 56, 64), channels=int(channels), window=(-1000, 1000), bits=32, fit=fit
    )
    preprocessing.pixels(Path(name).with_name("small-" + Path(name).name))  # libraries are loaded
    with open(name, "rb") as file:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        preprocessing.pixels(file)
        print(fit, Path(name).name, (peak() - before) / int(values))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures by Linux's peak memory")
def test_no_volume_takes_more_memory_than_is_reserved(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for side, prefix in ((128, ""), (16, "small-")):
        values = generator.normal(0, 300, (side, side, side, 1))
        holed = values.astype(np.float32)
        holed[:3] = np.nan
        np.save(tmp_path / f"{prefix}float64.npy", values)
        np.save(tmp_path / f"{prefix}fortran.npy", np.asfortranarray(values[..., 0]))
        np.save(tmp_path / f"{prefix}holed.npy", holed)
        np.savez_compressed(tmp_path / f"{prefix}float64.npz", image=values)
        first = np.concatenate([holed, holed, holed], axis=-1)
        np.save(tmp_path / f"{prefix}first.npy", np.ascontiguousarray(np.moveaxis(first, -1, 0)))
        for kind in ("float64", "float32", "int16"):
            image = nibabel.Nifti1Image(values[..., 0].astype(kind), np.diag([2, 1, 3, 1]))
            nibabel.save(image, tmp_path / f"{prefix}{kind}.nii.gz")
            nibabel.save(image, tmp_path / f"{prefix}{kind}.nii")
        scaled = nibabel.Nifti1Image(values[..., 0], np.eye(4))
        scaled.set_data_dtype(np.int16)
        nibabel.save(scaled, tmp_path / f"{prefix}scaled.nii.gz")
    words = []
    for path in sorted(tmp_path.iterdir()):
        if not path.name.startswith("small-"):
            channels = 3 if path.name == "first.npy" else 1
            for fit in ("stretch", "center"):
                words += [fit, str(path), str(channels * 128**3), str(channels)]
    # Freed memory goes back to the system at once, where later files would use it without a new peak.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], check=True, capture_output=True, text=True, env=environment
    ).stdout.splitlines()
    assert len(measured) == 24
    for line in measured:
        assert float(line.split()[-1]) < BYTES_OF_VALUE, measured


def test_arrays_in_the_open_inference_protocol(volumes: Callable[..., httpx.Client]) -> None:
    client = volumes()
    path = "/v2/models/resnet20/infer"
    batch = np.stack([volume(1), volume(2)])
    tensor = {
        "name": "images",
        "datatype": "INT16",
        "shape": list(batch.shape),
        "data": batch.ravel().tolist(),
    }
    outputs = client.post(path, json={"inputs": [tensor]}).json()["outputs"]
    assert next(each["data"] for each in outputs if each["name"] == "labels") == ["green", "blue"]
    flat = {"name": "images", "datatype": "INT16", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    response = client.post(path, json={"inputs": [flat]})
    assert response.status_code == 400
    assert response.json()["error"] == "shape=[1, 1, 1, 3]: must be [N, D, H, W, 3]"


def test_signals_come_as_arrays(serving: Serving, colors: Classifier) -> None:
    colors.preprocessing = Preprocessing((8,), channels=3, window=(-1000, 400), bits=16, fit="center")
    colors.runtime.logits = lambda batch: batch.mean(axis=2, dtype=np.float32)  # type: ignore[method-assign]
    colors.runtime.input_type = "float32"  # type: ignore[misc]
    files = upload(npy(volume(1, (20,))), b"1,2,3\n4,5,6\n")
    [found, table] = serving().post(PREDICT, files=files).json()["predictions"]
    assert found["label"] == "green"
    assert table["error"] == "must be a signal in a .npy or .npz file"


def test_examples_are_images() -> None:
    with pytest.raises(UserError, match="examples=x: takes models of images, not of signals"):
        find_examples("x", preprocessing=Preprocessing((9,), channels=1))
