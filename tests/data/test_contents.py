"""Images are known again by their bytes, whatever they are called and wherever they lie."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.helpers.classifiers import write_class_folders

from skipnets.data.contents import Content, contents, repeated
from skipnets.data.dataset import ImageDataset
from skipnets.data.sources import open_dataset


def test_the_content_of_a_file_is_its_size_and_hash(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", ("ant", "bee"))
    dataset = open_dataset(root)
    found = contents(dataset)
    for index, content in enumerate(found):
        data = (root / dataset.names[index]).read_bytes()
        assert content == Content(len(data), hashlib.blake2b(data, digest_size=16).hexdigest())
    # The helper writes the same ten images for each class.
    pairs = [{dataset.names[index] for index in same} for same in repeated(found)]
    assert sorted(map(sorted, pairs)) == [[f"ant/{index}.png", f"bee/{index}.png"] for index in range(10)]


def test_files_that_cannot_be_read_are_no_copies_of_one_another(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", ("ant", "bee"))
    dataset = open_dataset(root)
    for name in ("ant/0.png", "bee/0.png"):
        (root / name).unlink()
    found = contents(dataset)
    assert sum(content == Content(-1, "") for content in found) == 2
    assert len(list(repeated(found))) == 9


def test_pixels_in_memory_and_pages_of_a_file_are_told_apart(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    images[1] = 1
    dataset = ImageDataset(
        classes=("a",),
        names=["0", "1", "2"],
        labels=np.zeros(3, np.int64),
        splits=np.array(["test"] * 3),
        images=images,
    )
    found = contents(dataset)
    assert list(repeated(found)) == [[0, 2]]
    assert {content.size for content in found} == {16}
    pages = contents(replace(dataset, pages=np.array([0, 1, 2])))
    assert [content.hash.partition("#")[2] for content in pages] == ["", "2", "3"]
    assert list(repeated(pages)) == []
