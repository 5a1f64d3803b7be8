"""Folders, manifests and what can be wrong with them."""

from __future__ import annotations

import logging
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipnets.data import open_dataset
from skipnets.data.listing import Listing
from skipnets.data.sources import ImageDataset, deal_out
from skipnets.data.splits import find_shares
from skipnets.data.survey import survey
from skipnets.errors import UserError


def put(root: Path, *names: str, mode: str = "RGB") -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (3, 2)).save(path)
    return root


def folder(root: Path, **counts: int) -> Path:
    """root/<class>/0.png… with so many images a class; __ in a name stands for /."""
    for name, count in counts.items():
        put(root, *(f"{name.replace('__', '/')}/{number}.png" for number in range(count)))
    return root


def counts(dataset, split):
    part = dataset.split(split)
    return {name: int((part.labels == label).sum()) for label, name in enumerate(part.classes)}


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


def test_fractions_may_leave_a_split_out(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=2, b=10), fractions=(0.8, 0.2, 0))
    assert counts(dataset, "test") == {"a": 0, "b": 0}
    assert counts(dataset, "val") == {"a": 1, "b": 2}


def test_split_folders_are_kept(tmp_path):
    dataset = open_dataset(folder(tmp_path, train__a=3, train__b=1, val__a=1, val__b=1, test__b=2))
    assert counts(dataset, "train") == {"a": 3, "b": 1}
    assert counts(dataset, "val") == {"a": 1, "b": 1}
    assert counts(dataset, "test") == {"a": 0, "b": 2}


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ({"test__a": 5, "test__b": 5}, {"train": 14, "val": 3, "test": 5}),
        ({"val__a": 5, "val__b": 5}, {"train": 14, "val": 5, "test": 3}),
        ({}, {"train": 12, "val": 2.5, "test": 2.5}),
    ],
)
def test_missing_splits_are_cut_from_train(tmp_path, present, expected):
    dataset = open_dataset(folder(tmp_path, train__a=17, train__b=17, **present))
    for split, count in expected.items():
        for got in counts(dataset, split).values():
            assert got == pytest.approx(count, abs=0.5)
    for name, split in zip(dataset.names, dataset.splits, strict=True):
        assert name.startswith((f"{split}/", "train/"))


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
def test_a_class_missing_from_one_split_shifts_no_labels(tmp_path, lacking):
    folder(
        tmp_path,
        **{f"{s}__{c}": 3 for s in ("train", "val", "test") for c in "abc" if (s, c) != (lacking, "b")},
    )
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("a", "b", "c")
    for split in ("train", "val", "test"):
        part = dataset.split(split)
        assert part.classes == dataset.classes
        assert counts(part, split)["b"] == (0 if split == lacking else 3)
        for name, label in zip(part.names, part.labels, strict=True):
            assert name.split("/")[1] == "abc"[label]


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


def test_repeating_splits_is_strict(tmp_path, caplog):
    root = folder(tmp_path / "data", a=5, b=5)
    path = tmp_path / "splits.csv"
    dataset = open_dataset(root, seed=3)
    dataset.write_splits(path)
    put(root, "a/new.png")
    with caplog.at_level(logging.WARNING, "skipnets"):
        again = open_dataset(root, splits=path)
    assert "1 image that" in caplog.text
    assert again.names == dataset.names
    (root / "a/new.png").unlink()
    (root / "a/3.png").rename(root / "b/3_.png")
    with pytest.raises(UserError, match=r"splits\.csv: lists a/3\.png, which the data do not hold"):
        open_dataset(root, splits=path)
    path.write_text("path,label,split\nb/1.png,a,train\n")
    with pytest.raises(UserError, match=r"lists b/1\.png as 'a', which the data hold under another class"):
        open_dataset(root, splits=path)


def test_data_to_be_evaluated_is_not_dealt_out(tmp_path):
    dataset = open_dataset(folder(tmp_path, a=1), fractions=None)
    assert dataset.classes == ("a",)
    assert dataset.splits.tolist() == ["test"]
    kept = open_dataset(folder(tmp_path / "more", train__a=1, val__a=1), fractions=None)
    assert sorted(kept.splits.tolist()) == ["train", "val"]


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


def test_channels(tmp_path):
    assert open_dataset(folder(tmp_path / "color", a=3, b=3)).channels == 3
    gray = put(tmp_path / "gray", *(f"{c}/{n}.png" for c in "ab" for n in range(3)), mode="L")
    assert open_dataset(gray).channels == 1
    put(gray, "b/3.png")
    assert open_dataset(gray).channels == 3


@pytest.mark.parametrize(
    ("counts", "way"), [((4, 5), "--exclude leaves"), ((3, 4), "--channels 3 takes the fourth of four")]
)
def test_mixed_numbers_of_channels_are_named_with_a_way_out(tmp_path, counts, way):
    for index in range(8):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        array = np.full((9, 9, counts[index // 2 % 2]), index, np.uint8)
        np.save(tmp_path / "ab"[index % 2] / f"{index}.npy", array)
    dataset = open_dataset(tmp_path, fractions=None)
    message = (
        f"images of {counts[0]} and {counts[1]} channels are mixed, where a model takes one number: {way}"
    )
    with pytest.raises(UserError, match=f"channels: {message}"):
        _ = dataset.channels
    assert any(line.startswith(message) for line in survey(dataset, "arrays").warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no images; they must lie in .*/<class>/ or .*/train/<class>/"),
        ({"a": 0, "b": 0}, "holds no images"),
        ({"train__a": 0}, "holds no images; they must lie in .*/train/<class>/"),
        ({"a": 5}, 'holds one class only, "a"; telling classes apart takes two or more'),
        ({"a": 5, "b": 2}, 'class "b" has 2 images to be split into train, val, test; it takes at least 3'),
        ({"a": 1, "b": 2, "c": 9}, r'class "a" has 1 images .*\(and 1 more classes too few\)'),
        (
            {"train__a": 5, "train__b": 1, "test__a": 2},
            'class "b" has 1 images to be split into train, val;',
        ),
    ],
)
def test_too_little_data_is_one_line(tmp_path, content, message):
    folder(tmp_path, **content)
    for name, count in content.items():
        if count == 0:
            (tmp_path / name.replace("__", "/")).mkdir(parents=True)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_folder_without_images_is_a_class_with_too_few(tmp_path):
    folder(tmp_path, a=5, b=5)
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match='class "c" has 0 images'):
        open_dataset(tmp_path)


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


def test_too_few_images_of_a_misspelled_class_say_so(tmp_path):
    """The reason is in sight, not in a warning that the error has swallowed."""
    for label, count in (("cat", 6), ("Cat", 1), ("dog", 6)):
        for index in range(count):
            put(tmp_path, f"{label}/{index}.png")
    with pytest.raises(UserError, match=r'class "Cat" has 1 images .*"Cat", "cat" differ only in spelling'):
        open_dataset(tmp_path)


def test_a_large_val_is_made_smaller_and_a_note_says_so():
    count = 40_000
    large = ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.where(np.arange(count) < 4000, "test", "train"),
    )
    dealt = deal_out(large, find_shares("auto"), 0, "photos")
    assert np.bincount(dealt.split("val").labels).tolist() == [2500, 2500]
    assert len(dealt.split("test")) == 4000
    [note] = dealt.listing.notes
    assert note == (
        "val has 5,000 of 36,000 images, not 18%: enough to choose the best epoch "
        "(--fractions decides otherwise)"
    )
    given = deal_out(replace(large, listing=Listing()), find_shares((0.7, 0.15, 0.15)), 0, "photos")
    assert len(given.split("val")) == pytest.approx(36_000 * 15 / 85, abs=1)
    assert given.listing.notes == []
