"""Servers of models of volumes and signals."""

from __future__ import annotations

import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from tests.helpers.serving import Serving, detail, upload

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.serve import Limits
from skipnets.serve.examples import find_examples

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
        (npy(np.zeros((20, 20, 20, 3))), "larger than 1,000 values, the most that is read"),
        (npy(np.full((2, 2, 2, 3), np.nan)), "has no finite value"),
        (npy(volume(0))[:200], ""),
        (b"GIF89a", "not a volume in a known format"),
    ):
        response = client.post(PREDICT, files=upload(content))
        assert message in detail(response, 422)
    tight = volumes(limits=Limits(memory=1000))
    assert "MiB is the limit" in detail(tight.post(PREDICT, files=upload(npy(volume(0)))), 422)


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
