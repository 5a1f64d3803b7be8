"""Folders, manifests and what can be wrong with them."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.folders import counts, folder, put

from skipnets.data import decoding, open_dataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.options import DataOptions
from skipnets.errors import UserError

WHO = ("patient1", "patient2", "case7")


def test_class_folders_are_split(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=20, b=40))
    assert dataset.classes == ("a", "b")
    assert len(dataset) == 60
    assert counts(dataset, "train") == {"a": 14, "b": 28}
    assert counts(dataset, "val") == {"a": 3, "b": 6}
    assert counts(dataset, "test") == {"a": 3, "b": 6}
    for name, label in zip(dataset.names, dataset.labels, strict=True):
        assert name.split("/")[0] == dataset.classes[label]
    assert dataset.open(0).size == (3, 2)
    assert dataset.split("all") is dataset
    again = open_dataset(str(tmp_path))
    np.testing.assert_array_equal(again.splits, dataset.splits)
    assert (open_dataset(tmp_path, seed=1).splits != dataset.splits).any()


def test_what_is_no_image_is_passed_over(tmp_path):
    folder(tmp_path, a=3, b=3)
    put(tmp_path, "a/deep/er/x.JPG", "b/y.Tiff", ".hidden/z.png", "a/.hidden/z.png", "a/._z.png", "loose.png")
    (tmp_path / "a/readme.txt").write_text("")
    (tmp_path / "notes.md").write_text("")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("a", "b")
    assert sorted(set(dataset.names) - {f"{c}/{n}.png" for c in "ab" for n in range(3)}) == [
        "a/deep/er/x.JPG",
        "b/y.Tiff",
    ]


def test_unusual_names(tmp_path):
    labels = ["Ankle boot", "größe", "日本", "a,b", '"q"', "ümlaut"]
    for label in labels:
        put(tmp_path, *(f"{label}/{n} %d.png" for n in range(3)))
    dataset = open_dataset(tmp_path)
    assert dataset.classes == tuple(sorted(labels))
    dataset.write_splits(tmp_path / "splits.csv")
    again = open_dataset(tmp_path, splits=tmp_path / "splits.csv", seed=9)
    assert again.names == dataset.names
    np.testing.assert_array_equal(again.splits, dataset.splits)
    assert {again.open(index).size for index in range(len(again))} == {(3, 2)}


def test_one_class_in_two_unicode_spellings(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        put(tmp_path, *(f"{split}/{unicodedata.normalize(form, 'café')}/{n}.png" for n in range(3)))
        put(tmp_path, *(f"{split}/tea/{n}.png" for n in range(3)))
    assert open_dataset(tmp_path).classes == (unicodedata.normalize("NFC", "café"), "tea")


def test_symbolic_links_are_followed_once(tmp_path):
    root = folder(tmp_path / "root", a=3, b=3)
    elsewhere = folder(tmp_path / "elsewhere", more=2)
    (root / "c").symlink_to(put(tmp_path / "c", "0.png", "1.png", "2.png"))
    (root / "a/loop").symlink_to(root / "a")
    (root / "a/up").symlink_to(root)
    (root / "b/more").symlink_to(elsewhere)
    (root / "b/more_again").symlink_to(elsewhere)
    assert counts(open_dataset(root), "all") == {"a": 3, "b": 5, "c": 3}


def test_manifest(tmp_path):
    put(tmp_path, *(f"pool/{number}.png" for number in range(12)))
    lines = [f"pool/{number}.png,{'even' if number % 2 == 0 else 'odd number'}" for number in range(12)]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,label", *lines]))
    dataset = open_dataset(path)
    assert dataset.classes == ("even", "odd number")
    assert counts(dataset, "train") == {"even": 4, "odd number": 4}
    assert dataset.open(3).size == (3, 2)
    absolute = tmp_path / "elsewhere" / "list.csv"
    absolute.parent.mkdir()
    absolute.write_text("\n".join(["path,label,split", *(f"{tmp_path}/{line},val" for line in lines)]))
    given = open_dataset(absolute)
    assert set(given.splits.tolist()) == {"val"}
    assert given.open(3).size == (3, 2)


def test_wrong_places(tmp_path):
    (tmp_path / "x.zip").write_text("")
    with pytest.raises(
        UserError,
        match=r"x\.zip: must be a folder, a manifest \(\.csv, .*named dataset \(digits, mnist.*unpack",
    ):
        open_dataset(tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"nothing: no such folder, manifest or named dataset"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match="did you mean cifar10"):
        open_dataset("cifar-10")
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"list\.csv: lists no images"):
        open_dataset(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("path,label\nabsent.png,a\n")
    with pytest.raises(UserError, match=r"list\.csv: 1 of 1 listed files .*: absent\.png; --root"):
        open_dataset(tmp_path / "list.csv")
    with pytest.raises(UserError, match="seed=-1"):
        open_dataset(tmp_path, seed=-1)
    with pytest.raises(
        UserError, match="split='tset': must be one of train, val, test, all; did you mean test"
    ):
        open_dataset(folder(tmp_path / "d", a=3, b=3)).split("tset")


def test_reading_needs_no_torch(tmp_path):
    folder(tmp_path, a=3, b=3)
    code = (
        "import sys; from skipnets.data import Preprocessing, open_dataset\n"
        "from skipnets.data.loading import evaluation_batches\n"
        f"dataset = open_dataset({str(tmp_path)!r})\n"
        "assert sum(len(batch.inputs) for batch in evaluation_batches(dataset, Preprocessing(8))) == 6\n"
        "assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_patterns_leave_out_what_a_manifest_lists(tmp_path):
    names = ["cat/1.png", "cat/1_mask.png", "blurred/deep/2.png", "dog/3.png", "dog/4.png"]
    put(tmp_path, *names)
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,label", *(f"{name},{name[0]}" for name in names)]))
    options = DataOptions(exclude=("*_mask.png", "blurred/"))
    dataset = open_dataset(path, fractions=None, options=options)
    assert dataset.names == ["cat/1.png", "dog/3.png", "dog/4.png"]
    assert dataset.classes == ("c", "d")
    assert dataset.listing.passed_over["excluded"] == 2
    with pytest.raises(UserError, match="lists no images but excluded ones"):
        open_dataset(path, options=DataOptions(exclude=("*.png",)))
    path.rename(tmp_path / "metadata.csv")
    assert open_dataset(tmp_path, fractions=None, options=options).names == dataset.names


def test_options_of_the_other_kind_of_data_are_refused(tmp_path):
    folder(tmp_path, a=3, b=3)
    with pytest.raises(UserError, match="root=x: is for a manifest"):
        open_dataset(tmp_path, options=DataOptions(root=Path("x")))
    (tmp_path / "list.csv").write_text("path,label\na/0.png,a\n")
    with pytest.raises(UserError, match="layout=splits: is for a folder"):
        open_dataset(tmp_path / "list.csv", options=DataOptions(layout="splits"))


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"patient(\d+)|case(\d+)", {"1", "2", "7"}),
        (r"[a-z]+\d", {"patient1", "patient2", "case7"}),
    ],
)
def test_groups_are_what_a_pattern_finds(tmp_path, pattern, groups):
    put(tmp_path, *(f"{label}/{who}_{n}.png" for label in "ab" for who in WHO for n in (0, 1)))
    dataset = open_dataset(tmp_path, options=DataOptions(group_pattern=pattern))
    assert set(dataset.groups) == groups
    for group in groups:
        assert len(set(dataset.splits[dataset.groups == group])) == 1


@pytest.mark.parametrize("pattern", [r"\d*", r"patient(\d*)", r"(x)?.png", "nothing"])
def test_a_pattern_that_finds_no_group_is_refused(tmp_path, pattern):
    put(tmp_path, *(f"{label}/{who}_{n}.png" for label in "ab" for who in WHO for n in (0, 1)))
    with pytest.raises(UserError, match=r"group_pattern=.*: finds no group in \d+ of 12 paths"):
        open_dataset(tmp_path, options=DataOptions(group_pattern=pattern))


def test_a_link_to_itself_ends_nothing(tmp_path):
    root = folder(tmp_path, a=3, b=3)
    (root / "a/loop").symlink_to(root / "a/loop")
    (root / "b/loop.png").symlink_to(root / "b/loop.png")
    dataset = open_dataset(root)
    assert counts(dataset, "all") == {"a": 3, "b": 4}  # by its name an image: its error comes when it is read
    with pytest.raises(ImageDecodeError, match=r"loop\.png"):
        dataset.open(dataset.names.index("b/loop.png"))


def test_every_page_counts_with_the_limit_that_was_asked_for(tmp_path, monkeypatch):
    pages = [Image.new("L", (10, 10), shade) for shade in (0, 100, 200)]
    for label in "ab":
        (tmp_path / label).mkdir()
        pages[0].save(tmp_path / label / "scan.tif", save_all=True, append_images=pages[1:])
        pages[0].save(tmp_path / label / "scan", format="png")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 50)
    dataset = open_dataset(tmp_path, fractions=None, options=DataOptions(page="all", max_pixels=200))
    assert counts(dataset, "all") == {"a": 4, "b": 4}
    assert dataset.open(0).size == (10, 10)
