"""Folders as people have them: each ends in the right classes and splits, or in one line saying why not."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.helpers.folders import found, image_bytes, plant

from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.split_names import split_names
from skipnets.errors import UserError, install_command


class Case(NamedTuple):
    """A tree and what is to come of it.

    Attributes:
        tree: For `plant`.
        expected: For `found`, or "error: " and a pattern.
        said: Patterns of notes, warnings or reasons for passing over, each of which must be there.
        options: How it is read.
    """

    tree: dict[str, object]
    expected: str
    said: tuple[str, ...] = ()
    options: dict[str, object] = {}  # noqa: RUF012 - never changed


PAIR = {"cat": 2, "dog": 3}
UNSPLIT = "test: cat 2, dog 3"
SPLIT = "train: cat 4, dog 5; test: cat 1, dog 2"


def two(train: str, test: str, **more: object) -> dict[str, object]:
    return {f"{train}/cat": 4, f"{train}/dog": 5, f"{test}/cat": 1, f"{test}/dog": 2, **more}


CASES = {
    "classes": Case(PAIR, UNSPLIT),
    "classes, deep": Case({"cat/a/b": 1, "cat/c": 1, "dog": 3}, UNSPLIT),
    "capitals": Case(two("Train", "TEST"), SPLIT, ("Train is the train split", "TEST is the test split")),
    "Kaggle's Training and Testing": Case(
        two("Training", "Testing"), SPLIT, ("Training is the train split",)
    ),
    "valid": Case(
        {**two("train", "test"), "valid/cat": 1, "valid/dog": 1},
        "train: cat 4, dog 5; val: cat 1, dog 1; test: cat 1, dog 2",
        ("valid is the val split",),
    ),
    "dev and holdout": Case(
        {"trn/cat": 2, "trn/dog": 2, "dev/cat": 1, "dev/dog": 1, "hold-out/dog": 1, "hold-out/cat": 1},
        "train: cat 2, dog 2; val: cat 1, dog 1; test: cat 1, dog 1",
    ),
    "seg_train/seg_train": Case(two("seg_train/seg_train", "seg_test/seg_test"), SPLIT),
    "seg_pred beside them": Case(
        two("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred/seg_pred": 3},
        r"error: beside them other folders with images: seg_pred; .*--exclude seg_pred",
    ),
    "seg_pred left out": Case(
        two("seg_train", "seg_test") | {"seg_pred": 3}, SPLIT, ("excluded",), {"exclude": ("seg_pred",)}
    ),
    "with years": Case(two("train2017", "test2017"), SPLIT),
    "train_images": Case(two("train_images", "test-images"), SPLIT),
    "German": Case(
        two("Training", "Testdaten", **{"Validierung/cat": 1, "Validierung/dog": 1}),
        "train: cat 4, dog 5; val: cat 1, dog 1; test: cat 1, dog 2",
    ),
    "Spanish": Case(two("entrenamiento", "prueba"), SPLIT),
    "French": Case(two("Entraînement", "test"), SPLIT),
    "Chinese": Case(two("训练集", "测试集"), SPLIT),
    "Japanese": Case(two("学習", "テスト"), SPLIT),
    "Russian": Case(two("обучение", "тест"), SPLIT),
    "one wrapper": Case({"photos/cat": 2, "photos/dog": 3}, UNSPLIT, ("the images are in photos/",)),
    "three wrappers": Case(
        two("archive/data/data/train", "archive/data/data/test"), SPLIT, ("in archive/data/data/",)
    ),
    "wrapper from a zip on a Mac": Case(
        two("set/train", "set/test", **{"__MACOSX/set/train/cat": 3}), SPLIT, ("folder __MACOSX",)
    ),
    "wrapper in each split": Case(two("train/images", "test/images"), SPLIT),
    "wrapper beside a read-me": Case(
        {"flowers/cat": 2, "flowers/dog": 3, "README.txt": "hello"}, UNSPLIT, (r"\.txt",)
    ),
    "only train": Case({"train/cat": 4, "train/dog": 5}, "train: cat 4, dog 5"),
    "only test": Case({"test/cat": 4, "test/dog": 5}, "test: cat 4, dog 5"),
    "empty val": Case(two("train", "test", val=None), SPLIT),
    "splits in classes": Case({"cat/train": 4, "cat/test": 1, "dog/train": 5, "dog/test": 2}, SPLIT),
    "unlabeled test": Case(
        {"train/cat": 4, "train/dog": 5, "test": 3},
        "train: cat 4, dog 5",
        (r"images in no class folder in test/", "test images in test lie in no class folders"),
    ),
    "splits without classes": Case(
        {"Training": 3, "Testing": 3},
        r"error: images in (Training|Testing), \w+ lie in no class folders; .*--layout classes",
    ),
    "splits meant as classes": Case(
        {"Training": 3, "Testing": 2}, "test: Testing 2, Training 3", (), {"layout": "classes"}
    ),
    "a class called train": Case(
        {"train": 3, "bus": 2, "car": 2},
        "test: bus 2, car 2, train 3",
        ('"train" is read as a class, though it is named like the train split',),
    ),
    "a class called train, with folders": Case(
        {"train/steam": 3, "bus": 2, "car": 2},
        "error: other folders with images: bus, car;.*--layout classes",
    ),
    "train_station and test_tube": Case(
        {"train_station": 2, "test_tube": 2}, "test: test_tube 2, train_station 2"
    ),
    "two validation splits": Case(
        two("train", "test", **{"val/cat": 1, "validation/cat": 1}),
        "error: val and validation both name the val split",
    ),
    "a further folder": Case(
        two("train", "test", **{"extra/cat": 1}), "error: other folders with images: extra"
    ),
    "a further folder without images": Case(
        two("train", "test", **{"docs/a.pdf": "x"}), SPLIT, ("folder docs without images",)
    ),
    "no split folders": Case(
        PAIR, "error: layout=splits: .* holds no split folders .*, only cat, dog", (), {"layout": "splits"}
    ),
    "flat": Case({".": 3}, r"error: holds 3 images but no class folders"),
    "flat beside a table": Case(
        {".": 3, "labels.csv": "id,label\n"}, r"error: no class folders; .*\(there is labels\.csv\)"
    ),
    "nothing": Case({"cat": None}, r"error: holds no images; they must lie in .*/<class>/"),
    "loose images": Case({**PAIR, ".": 1}, UNSPLIT, ("images in no class folder",)),
    "junk": Case(
        {
            **PAIR,
            "@eaDir/cat": 2,
            "cat/@eaDir": 2,
            "lost+found": 1,
            ".ipynb_checkpoints": 1,
            "cat/._0.png": "x",
            "Thumbs.db": "x",
            ".DS_Store": "x",
        },
        UNSPLIT,
        ("2 folder @eaDir", r"folder lost\+found", "3 hidden", "system files"),
    ),
    "own run folder": Case(
        {**PAIR, "run1/run.yaml": "data: .", "run1": 2}, UNSPLIT, (r"folder run1 \(written by skipnets\)",)
    ),
    "own runs, deeper": Case(
        {**PAIR, "runs/a/run.yaml": "data: .", "runs/a": 2},
        UNSPLIT,
        (r"folder runs/a \(written by skipnets\)", "folder runs without images"),
    ),
    "own evaluation": Case(
        {**PAIR, "result/evaluation.json": "{}", "result": 1}, UNSPLIT, ("written by skipnets",)
    ),
    "labels of a detector": Case(
        {**PAIR, "labels/0.txt": "0 1 2"}, UNSPLIT, ("folder labels without images",)
    ),
    "annotations with images": Case(
        {**PAIR, "annotations/trimaps": 2},
        "test: annotations 2, cat 2, dog 3",
        ('"annotations" is read as a class; if it is not one, --exclude annotations',),
    ),
    "masks left out": Case(
        {**PAIR, "cat/0_mask.png": image_bytes()}, UNSPLIT, ("1 excluded",), {"exclude": ("*_mask.png",)}
    ),
    "misnamed and unnamed files": Case(
        {
            "cat/a.jpg": image_bytes(),
            "cat/b": image_bytes("JPEG"),
            "dog/c.dat": image_bytes("GIF"),
            "dog/d.bin": b"\0\1\2",
            "dog": 1,
        },
        "test: cat 2, dog 2",
        (r"1 \.bin",),
    ),
    "rare formats": Case(
        {
            "cat/a.jfif": image_bytes("JPEG"),
            "cat/b.ppm": image_bytes("PPM"),
            "dog/c.jp2": image_bytes("JPEG2000"),
            "dog/d.avif": image_bytes("AVIF"),
        },
        "test: cat 2, dog 2",
    ),
    "a trailing blank": Case(
        {"train/cat": 2, "train/dog": 2, "test/cat ": 1, "test/dog": 1},
        "train: cat 2, dog 2; test: cat 1, dog 1",
        ('the folder "cat " holds the class "cat"',),
    ),
    "one class in two cases": Case(
        {"cat": 2, "Cat": 2, "dog": 2},
        "test: Cat 2, cat 2, dog 2",
        ('"Cat", "cat" differ only in spelling; are they one class',),
    ),
    "another case in test": Case(
        {"train/Cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1},
        'error: classes "Cat", "cat" differ only in spelling: "cat" is not in train',
    ),
    "an accent in test": Case(
        {"train/café": 2, "train/dog": 2, "test/cafe": 1, "test/dog": 1}, 'error: "cafe" is not in train'
    ),
    "a class only in test": Case(
        {"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/emu": 1},
        "train: cat 2, dog 2; test: cat 1, emu 1",
        (
            'classes that are not in train, so every image of them counts as wrong: "emu"',
            'classes that are in train but not in test: "dog"',
        ),
    ),
    "several labels in one": Case(
        {"cat": 2, "ship": 2, "cat|ship": 1},
        "test: cat 2, cat|ship 1, ship 2",
        (r'look like several labels: "cat\|ship"',),
    ),
    "patients in file names": Case(
        {f"{c}/patient{p}_{n}.png": image_bytes() for c in ("cat", "dog") for p in (1, 2) for n in (1, 2)},
        "test: cat 4, dog 4",
        ("images of one patient may .*--group-pattern",),
    ),
    "wrong layout": Case(
        PAIR,
        "error: layout='split': must be one of auto, classes, splits; did you mean splits",
        (),
        {"layout": "split"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_layout(tmp_path, case):
    root = plant(tmp_path / "data", case.tree)

    def open_it() -> ImageDataset:
        return find_dataset(root, fractions=None, options=DataOptions(**case.options))

    if case.expected.startswith("error: "):
        with pytest.raises(UserError, match=case.expected.removeprefix("error: ")) as caught:
            open_it()
        assert "\n" not in str(caught.value)
        return
    dataset = open_it()
    assert found(dataset) == case.expected
    listing = dataset.listing
    passed_over = [f"{count} {reason}" for reason, count in listing.passed_over.items()]
    lines = [*listing.notes, *listing.warnings, *passed_over]
    for pattern in case.said:
        assert any(re.search(pattern, line) for line in lines), lines
    if not case.said:
        assert not listing.warnings
        assert not passed_over
    for index in range(len(dataset)):
        dataset.open(index)


def test_the_table_is_as_long_as_promised():
    assert len(CASES) >= 40


def test_a_name_with_two_splits_is_none():
    assert split_names(["train_val", "prediction", "1", "latest", "contest", "trainer"]) == {}
    assert split_names(["cats_train", "cats_val", "dogs_test"]) == {"cats_train": "train", "cats_val": "val"}


def test_natural_order_of_classes(tmp_path):
    root = plant(tmp_path, {"1": 1, "2": 1, "10": 1, "b": 1, "A": 1})
    assert find_dataset(root, fractions=None).classes == ("1", "10", "2", "A", "b")
    natural = find_dataset(root, fractions=None, options=DataOptions(class_order="natural"))
    assert natural.classes == ("1", "2", "10", "A", "b")


def test_heic_without_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("skipnets.data.decoding.can_read_heif", lambda: False)
    content = b"\0\0\0\x18ftypheic" + bytes(20)
    root = plant(tmp_path, {**PAIR, "cat/a.heic": content, "cat/b.HEIC": content, "dog/c.jpg": content})
    dataset = find_dataset(root, fractions=None)
    assert found(dataset) == "test: cat 2, dog 4"
    assert dataset.listing.passed_over == {f".heic ({install_command('heic')})": 2}
    with pytest.raises(UserError, match=r"c\.jpg: a HEIC image; to read it: pip install"):
        dataset.open(dataset.names.index("dog/c.jpg"))
    # A class of which nothing can be read is not forgotten.
    plant(tmp_path, {"emu/d.heic": content})
    assert find_dataset(root, fractions=None).classes == ("cat", "dog", "emu")


def test_heic_with_its_extra_is_read(tmp_path):
    from pillow_heif import from_pillow

    (tmp_path / "cat").mkdir()
    image = Image.new("RGB", (64, 48), (200, 30, 40))
    from_pillow(image).save(tmp_path / "cat" / "a.heic")
    (tmp_path / "cat" / "b.jpg").write_bytes((tmp_path / "cat" / "a.heic").read_bytes())
    plant(tmp_path, {"dog": 1})
    dataset = find_dataset(tmp_path, fractions=None)
    assert found(dataset) == "test: cat 2, dog 1"
    for index in (0, 1):
        np.testing.assert_allclose(dataset.open(index).getpixel((20, 20)), (200, 30, 40), atol=4)


def test_pages(tmp_path):
    shades = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    (tmp_path / "a").mkdir()
    shades[0].save(tmp_path / "a" / "scan.tif", save_all=True, append_images=shades[1:])
    plant(tmp_path, {"b": 1})
    first = find_dataset(tmp_path, fractions=None)
    assert first.open(0).getpixel((0, 0)) == 10
    second = find_dataset(tmp_path, fractions=None, options=DataOptions(page=2))
    assert second.open(0).getpixel((0, 0)) == 20
    with pytest.raises(UserError, match=r"scan\.tif, page 4: there is no such page"):
        find_dataset(tmp_path, fractions=None, options=DataOptions(page=4)).open(0)
    every = find_dataset(tmp_path, fractions=None, options=DataOptions(page="all"))
    assert every.names == ["a/scan.tif#page=1", "a/scan.tif#page=2", "a/scan.tif#page=3", "b/0.png"]
    assert [every.open(index).getpixel((0, 0)) for index in range(3)] == [10, 20, 30]
    assert len(set(every.groups[:3])) == 1  # pages of one file never come into two splits
    every.write_splits(tmp_path / "splits.csv")
    again = find_dataset(tmp_path, splits=tmp_path / "splits.csv", options=DataOptions(page="all"))
    assert again.open(2).getpixel((0, 0)) == 30
    with pytest.raises(UserError, match="page=0: must be a number from 1, or all"):
        DataOptions(page=0)
