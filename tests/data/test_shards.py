"""An index of shards is checked before it is used, and an image's bytes whenever it is read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.test_copies import scene

from skipnets.data import ImageDecodeError, Preprocessing, open_dataset, write_shards
from skipnets.data.loading import evaluation_batches
from skipnets.data.options import DataOptions
from skipnets.data.shards import is_sharded, read_shards
from skipnets.data.survey import survey
from skipnets.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder "data" with twelve images, one of them a copy, and "out" with two shards of them."""
    root = tmp_path_factory.mktemp("written")
    for index in range(12):
        path = root / "data" / ("train", "test")[index % 2] / "ab"[index // 2 % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(min(index, 10)).save(path)
    write_shards(root / "data", root / "out")
    return root


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written / "out", tmp_path / "out")


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def change_list(folder: Path, values: Mapping[str, Any]) -> None:
    """Change the list of the first shard, and what the index says of the list."""
    path = folder / "train-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change_index(folder, lambda index: index["shards"][0].update(index_sha256=digest))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 3}, "index.json: version=3: must be 1 or 2"),
        ({"version": 2}, "index.json: task: must be text"),
        (
            {"version": 2, "task": "single-label"},
            "task='single-label': must be one of multi-label, regression",
        ),
        ({"version": 2, "task": "multi-label"}, "train-00000.json: labels: must be a list of texts"),
        ({"classes": []}, "index.json: classes=.*: must be names, each once"),
        ({"classes": ["a", "a"]}, "index.json: classes=a, a: must be names, each once"),
        ({"classes": ["a"]}, "train-00000.json: labels: must be from 0 to 0"),
        ({"classes": "ab"}, "index.json: classes: must be a list"),
        ({"classes": ["a", 1]}, "index.json: classes: must be a list of texts"),
        ({"classes": ["a", "\ud800"]}, "index.json: classes: must be a list of texts in Unicode"),
        ({"shards": []}, "index.json: lists no images"),
        ({"images": 999}, "index.json: images=999: must be 12, as its shards hold"),
        ({"images": None}, "index.json: images: must be a number from 0"),
        ({"shards": [1]}, "index.json: shards: must be a list of objects"),
        ({"shards": None}, "index.json: shards: must be a list"),
    ],
)
def test_a_wrong_index(out: Path, values: dict[str, Any], message: str) -> None:
    change_index(out, lambda index: index.update(values))
    with pytest.raises(UserError, match=message) as error:
        open_dataset(out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file", ["../out/train-00000.tar", "/etc/passwd", "a/b.tar", "..tar", "", "x\0.tar", "C:a.tar"]
)
def test_no_shard_lies_outside_the_folder(out: Path, file: str) -> None:
    change_index(out, lambda index: index["shards"][0].update(file=file))
    with pytest.raises(
        UserError, match=r"index\.json: file=.*: must be the name of a \.tar file in its folder"
    ):
        open_dataset(out)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"file": 3}, "index.json: file: must be text"),
        ({"file": "none.tar"}, "none.tar: no such file, though index.json lists it"),
        ({"bytes": 100}, "train-00000.tar: has [0-9,]+ bytes, where index.json says 100: it was cut short"),
        ({"bytes": True}, "index.json: bytes: must be a number from 0"),
        ({"images": 3}, "train-00000.json: its lists differ in length from what index.json says"),
        ({"split": "dev"}, "index.json: split='dev': must be one of train, val, test, or empty"),
        ({"index_sha256": "0"}, "train-00000.json: is not the one that index.json was written with"),
    ],
)
def test_a_wrong_shard(out: Path, values: dict[str, Any], message: str) -> None:
    change_index(out, lambda index: index["shards"][0].update(values))
    with pytest.raises(UserError, match=message):
        open_dataset(out)


FIVE = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ["../../x", *FIVE]}, r"names='\.\./\.\./x': must be a path without \.\. and not absolute"),
        ({"names": ["/x", *FIVE]}, "names='/x': must be"),
        ({"names": ["C:/x", *FIVE]}, "names='C:/x': must be"),
        ({"names": ["a/../x", *FIVE]}, "names='a/../x': must be"),
        ({"names": ["", *FIVE]}, "names='': must be"),
        ({"names": ["a", *FIVE]}, "lists an image twice"),
        ({"names": ["test/a/1.png", *FIVE]}, "lists an image twice"),
        ({"names": FIVE}, "its lists differ in length"),
        ({"names": 6 * [None]}, "names: must be a list of texts"),
        ({"groups": ["x"]}, "its lists differ in length"),
        ({"labels": [0, 0, 0, 0, 0, 2]}, "labels: must be from 0 to 1"),
        ({"labels": [0, 0, 0, 0, 0, -1]}, "labels: must be from 0 to 1"),
        ({"labels": [0, 0, 0, 0, 0, 0.5]}, "labels: must be a list of whole numbers"),
        ({"labels": [0, 0, 0, 0, 0, True]}, "labels: must be a list of whole numbers"),
        ({"labels": [0, 0, 0, 0, 0, 2**70]}, "labels: must be a list of whole numbers"),
        ({"offsets": [2**62, 0, 0, 0, 0, 0]}, r"places an image outside train-00000\.tar"),
        ({"offsets": [-1, 0, 0, 0, 0, 0]}, "places an image outside"),
        ({"sizes": [2**63 - 1, 0, 0, 0, 0, 0], "offsets": 6 * [1]}, "places an image outside"),
        ({"crcs": 6 * ["x"]}, "crcs: must be a list of whole numbers"),
        ({"hashes": 6 * ["x"]}, "hashes: must have 32 hexadecimal digits each"),
    ],
)
def test_a_wrong_list(out: Path, values: dict[str, Any], message: str) -> None:
    change_list(out, values)
    with pytest.raises(UserError, match=message):
        open_dataset(out)


@pytest.mark.parametrize("name", ["index.json", "train-00000.json", "train-00000.tar"])
def test_what_is_cut_short_is_named(out: Path, name: str) -> None:
    os.truncate(out / name, (out / name).stat().st_size - 300)
    with pytest.raises(UserError, match=name):
        open_dataset(out)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": "skipnets-shards", "a": ' + "[" * 100_000, "{}", "[]"]
)
def test_another_index(out: Path, content: str) -> None:
    (out / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"holds shards without|not a whole JSON file"):
        open_dataset(out)


def test_a_folder_with_an_index_of_its_own_is_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"pages": []}')
    assert not is_sharded(tmp_path)


def test_other_bytes_in_a_shard_are_an_error_of_the_image(out: Path) -> None:
    dataset = open_dataset(out, fractions=None)
    index = dataset.names.index("train/a/0.png")
    assert dataset.members is not None
    member = dataset.members[index]
    with (out / "train-00000.tar").open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(
        ImageDecodeError, match=r"train-00000\.tar:train/a/0\.png: its bytes in the shard are not those"
    ):
        dataset.open(index)
    found = survey(dataset, "out")
    assert found.unreadable == {"train/a/0.png": "its bytes in the shard are not those that were written"}
    [batch] = evaluation_batches(dataset, Preprocessing(8))
    assert [position for position, _ in batch.failures] == [index]
    assert len(batch.inputs) == 11


def test_copies_are_found_as_in_files(written: Path) -> None:
    files = open_dataset(written / "data", duplicates="keep-together")
    packed = open_dataset(written / "out", duplicates="keep-together")
    assert packed.copies == files.copies
    assert [(copy.first, copy.second, copy.exact) for copy in packed.copies]
    assert len(open_dataset(written / "out", duplicates="drop")) == 11


def test_a_manifest_cannot_list_them(written: Path) -> None:
    from skipnets.report.correction import check_listed

    with pytest.raises(
        UserError, match=r"write=clean\.csv: out lies in shards, which a manifest cannot list"
    ):
        check_listed(open_dataset(written / "out"), "clean.csv", "out")


def test_options(written: Path) -> None:
    with pytest.raises(UserError, match=r"out: holds shards, for which --exclude b comes too late"):
        open_dataset(written / "out", options=DataOptions(exclude=("b",)))
    with pytest.raises(ImageDecodeError, match="larger than 100 pixels"):
        open_dataset(written / "out", options=DataOptions(max_pixels=100)).open(0)
    grouped = open_dataset(written / "out", fractions=None, options=DataOptions(group_pattern=r"\d+"))
    assert grouped.groups is not None
    assert sorted(grouped.groups.tolist(), key=int) == [str(number) for number in range(12)]


@pytest.mark.parametrize("page", [2, "all"])
def test_pages(page: Any, tmp_path: Path) -> None:
    for label in "ab":
        for number in range(3):
            pages = [Image.new("L", (4, 4), 40 * number + shade) for shade in (0, 10)]
            path = tmp_path / "data" / label / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            pages[0].save(path, save_all=True, append_images=pages[1:])
    write_shards(tmp_path / "data", tmp_path / "out")
    files = open_dataset(tmp_path / "data", options=DataOptions(page=page))
    packed = open_dataset(tmp_path / "out", options=DataOptions(page=page))
    assert packed.names == files.names
    assert packed.splits.tolist() == files.splits.tolist()
    for index in range(len(files)):
        assert np.array_equal(np.asarray(packed.open(index)), np.asarray(files.open(index)))
    files.write_splits(tmp_path / "files.csv")
    packed.write_splits(tmp_path / "packed.csv")
    assert (tmp_path / "files.csv").read_text() == (tmp_path / "packed.csv").read_text()


def test_members_of_chosen_images(written: Path) -> None:
    listing, members = read_shards(written / "out")
    names = [entry.name for entry in listing.entries]
    assert [members[index].name for index in range(12)] == names
    chosen = pickle.loads(pickle.dumps(members.select(np.array([7, 0]))))
    assert [chosen[0], chosen[1]] == [members[7], members[0]]
    assert chosen.file(0) == members.file(7)


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("multi-label", "c", "labels: c: no such label; there are a, b"),
        ("regression", "1", "labels: '1': must hold a number for each of a, b"),
        ("regression", "|", r"labels: '\|': must hold a number for each of a, b"),
        ("regression", "1|nan", r"labels: '1\|nan': must hold finite numbers"),
        ("regression", "1|1e99", r"labels: '1\|1e99': must hold finite numbers"),
    ],
)
def test_wrong_labels_and_numbers(out: Path, task: str, text: str, message: str) -> None:
    change_index(out, lambda index: index.update(version=2, task=task))
    change_list(out, {"labels": [text] * 6})
    with pytest.raises(UserError, match=message):
        open_dataset(out)
