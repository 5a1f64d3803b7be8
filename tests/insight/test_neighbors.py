"""The nearest images are those that scikit-learn finds, and kept embeddings are those of unchanged images."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from tests.helpers.classifiers import make_classifier, some_image

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.insight import search
from skipnets.insight.neighbors import nearest


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 20), st.integers(1, 50))
def test_the_nearest_are_those_of_scikit_learn(seed: int, vectors: int, queries: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images, asked = rng.normal(size=(vectors, 5)), rng.normal(size=(queries, 5))
    found, positions = nearest(images.astype(np.float32), asked.astype(np.float32), count)
    wanted = NearestNeighbors(n_neighbors=min(count, vectors), metric="cosine", algorithm="brute").fit(images)
    distances, neighbors = wanted.kneighbors(asked)
    np.testing.assert_allclose(found, 1 - distances, atol=1e-6)
    assert (positions == neighbors).all()


def test_equal_images_come_in_their_order_and_a_vector_of_zeros_is_like_nothing() -> None:
    vectors = np.array([[0, 0], [1, 0], [2, 0], [0, 3]], np.float32)
    similarities, positions = nearest(vectors, vectors[1:2], 4)
    assert positions.tolist() == [[1, 2, 0, 3]]
    assert similarities.tolist() == [[1, 1, 0, 0]]
    similarities, positions = nearest(vectors, vectors[1:2], 2, leave_out=[1])
    assert (positions.tolist(), similarities.tolist()) == ([[2, 0]], [[1, 0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for index in range(8):
        Image.fromarray(some_image((16, 20, 3), index)).save(root / f"{index}.png")
    return root


class Counting:
    """A runtime that counts the images that it embeds."""

    def __init__(self, runtime: Any) -> None:
        self.name, self.input_type, self.device = runtime.name, runtime.input_type, runtime.device
        self.model = runtime.model
        self._runtime = runtime
        self.count = 0

    def embed(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        self.count += len(batch)
        embedded: NDArray[np.float32] = self._runtime.embed(batch)
        return embedded


def counted(classifier: Classifier) -> tuple[Classifier, Counting]:
    """The classifier with a runtime that counts."""
    counting = Counting(classifier.runtime)
    names = ("architecture", "classes", "preprocessing", "provenance", "path")
    return Classifier(**{name: getattr(classifier, name) for name in names}, runtime=counting), counting


def test_a_search_compares_embeddings_and_does_not_find_the_query_itself(
    exported_classifier: Classifier, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = sorted(folder.iterdir())
    found = search(exported_classifier, folder, query=[paths[3], Image.open(paths[3])], count=3)
    assert (found.images, found.queries) == (8, (str(paths[3]), "[1]"))
    vectors = exported_classifier.embed(paths).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[3]
    order = [str(paths[index]) for index in np.argsort(-cosines)]
    file, same_pixels = found.neighbors
    assert [each.source for each in same_pixels] == order[:3]
    assert [each.source for each in file] == order[1:4]  # a file is not found by itself, its copy would be
    assert [each.similarity for each in file] == pytest.approx(np.sort(cosines)[::-1][1:4], abs=1e-5)
    alone = search(exported_classifier, paths[0], query=paths[0])
    assert alone.neighbors == ((),)
    assert caplog.messages == [f"no image but the query itself was searched: {paths[0]}"]
    in_memory = [some_image((16, 20, 3), index) for index in range(8)]
    again = search(exported_classifier, in_memory, query=in_memory[5], count=1)
    assert again.neighbors[0][0].source == "[5]"
    assert again.sheet().size[0] > 2 * 256


def test_an_index_keeps_embeddings_until_image_or_model_change(
    exported_classifier: Classifier, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "index.safetensors"
    classifier, counting = counted(exported_classifier)

    def embedded() -> int:
        before = counting.count
        found = search(classifier, folder, query=some_image((16, 20, 3), 2), count=8, index=index)
        fresh = search(exported_classifier, folder, query=some_image((16, 20, 3), 2), count=8)
        assert found.columns()["path"] == fresh.columns()["path"]
        assert found.columns()["similarity"] == pytest.approx(fresh.columns()["similarity"], abs=1e-5)
        return counting.count - before - 1  # the query

    assert embedded() == 8
    kept = index.stat()
    assert embedded() == 0
    assert index.stat().st_mtime_ns == kept.st_mtime_ns
    Image.fromarray(some_image((16, 20, 3), 77)).save(folder / "3.png")
    Image.fromarray(some_image((16, 20, 3), 78)).save(folder / "new.png")
    (folder / "5.png").unlink()
    assert embedded() == 2
    assert embedded() == 0
    classifier.path = None  # a model that is not in the file has another fingerprint
    with caplog.at_level("INFO", logger="skipnets"):
        assert embedded() == 8
    assert "embeddings by another model" in caplog.text


def test_a_search_of_a_part_keeps_the_rest_of_the_index(
    exported_classifier: Classifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, counting = counted(exported_classifier)
    index = tmp_path / "index.safetensors"

    def embedded(*images: Path | str) -> int:
        before = counting.count
        search(classifier, list(images), query=some_image((16, 20, 3), 2), index=index)
        return counting.count - before - 1  # the query

    assert embedded(folder) == 8
    new = tmp_path / "new.png"
    Image.fromarray(some_image((16, 20, 3), 77)).save(new)
    assert embedded(folder / "3.png", new) == 1
    monkeypatch.chdir(tmp_path)
    assert embedded("images", "new.png") == 0
    monkeypatch.chdir(folder)
    assert embedded(".", "./../new.png", folder) == 0
    (folder / "5.png").unlink()
    Image.fromarray(some_image((16, 20, 3), 78)).save(folder / "6.png")
    Image.fromarray(some_image((16, 20, 3), 79)).save(new)
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.name == "7.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        assert embedded(new) == 1
    with safetensors.safe_open(index, framework="numpy") as file:
        names = [Path(name).name for name, *_ in json.loads(file.metadata()["skipnets-index"])["images"]]
        assert sorted(names) == ["0.png", "1.png", "2.png", "3.png", "4.png", "7.png", "new.png"]
        assert file.get_tensor("vectors").shape[0] == 7
    assert embedded(folder, new) == 1  # the one that was changed
    fresh = search(exported_classifier, folder, query=some_image((16, 20, 3), 2))
    kept = search(classifier, folder, query=some_image((16, 20, 3), 2), index=index)
    assert kept.columns()["path"] == fresh.columns()["path"]
    assert kept.columns()["similarity"] == pytest.approx(fresh.columns()["similarity"], abs=1e-5)


def test_an_index_is_not_compared_with_a_network_that_was_trained_further(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier, index = make_classifier(), tmp_path / "index.safetensors"
    search(classifier, folder, query=folder / "0.png", index=index)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            parameter.add_(torch.rand_like(parameter))
    with caplog.at_level("INFO", logger="skipnets"):
        again = search(classifier, folder, query=folder / "0.png", index=index)
    assert "embeddings by another model" in caplog.text
    fresh = search(classifier, folder, query=folder / "0.png")
    assert again.columns() == fresh.columns()


def test_an_embedding_that_is_not_finite_is_its_images_error(
    exported_classifier: Classifier, folder: Path, tmp_path: Path
) -> None:
    classifier, counting = counted(exported_classifier)
    index = tmp_path / "index.safetensors"

    def embed(batch: NDArray[Any]) -> NDArray[np.float32]:
        vectors = exported_classifier.runtime.embed(batch)
        vectors[(np.ptp(batch, axis=(2, 3)) == 0).all(axis=1)] = np.nan
        return vectors

    wrong = [str(folder / name) for name in ("1.png", "2.png")]
    for path in wrong:
        Image.new("RGB", (20, 16)).save(path)
    counting.embed = embed  # type: ignore[method-assign]
    for _ in range(2):
        found = search(classifier, folder, query=folder / "0.png", index=index)
        assert (found.images, list(found.failures)) == (6, wrong)
        assert all("outputs are not finite" in reason for reason in found.failures.values())
    with pytest.raises(UserError, match=r"query: .*1\.png: the network's outputs are not finite"):
        search(classifier, folder, query=folder)
    vectors = np.ones((3, 2), np.float32)
    for value in (np.nan, np.inf, 1e38):
        other = vectors.copy()
        other[1, 0] = value
        with pytest.raises(UserError, match="vectors: must be finite; row 1 is not"):
            nearest(other, vectors, 2)
        with pytest.raises(UserError, match="queries: must be finite; row 1 is not"):
            nearest(vectors, other, 2)


def test_wrong_input_is_one_line(exported_classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    model = exported_classifier.path
    assert model is not None
    for arguments, message in (
        ({"query": damaged}, r"query: .*damaged\.png"),
        ({"query": []}, r"query: must name at least one image"),
        ({"images": []}, r"images: must name at least one"),
        ({"images": damaged}, r"images: none can be read"),
        ({"count": 0}, r"count=0: must be at least 1"),
        ({"index": "index.npz"}, r"index=index\.npz: must end in \.safetensors"),
        ({"index": model}, r"index=.*model\.safetensors: is no index of embeddings"),
    ):
        given: dict[str, Any] = {"images": folder, "query": folder / "0.png", **arguments}
        before = model.read_bytes()
        with pytest.raises(UserError, match=message):
            search(exported_classifier, given.pop("images"), **given)
        assert model.read_bytes() == before
    with pytest.raises(
        UserError, match=r"output=a\.jpg: must end in \.png, \.html, \.csv, \.jsonl or \.parq"
    ):
        search(exported_classifier, folder, query=folder / "0.png").save("a.jpg")
