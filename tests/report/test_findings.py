"""An audit finds each flaw of a small dataset, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.flawed import FOUND, scene, write_flawed

from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_with_own_splits
from skipnets.data.splitting import check_groups
from skipnets.report import Audit, audit
from skipnets.report.findings import KINDS, actions, copy_groups, merged_spellings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    root = tmp_path_factory.mktemp("flawed") / "pets"
    write_flawed(root)
    return audit(root)


@pytest.mark.parametrize("kind", FOUND)
def test_each_flaw_is_found_and_nothing_else(found: Audit, kind: str) -> None:
    assert {finding.name for finding in found.findings[kind]} == FOUND[kind]


def test_every_kind_is_there_and_told(found: Audit) -> None:
    assert list(found.findings) == list(KINDS)
    assert all(finding.detail for each in found.findings.values() for finding in each)
    details = {finding.kind: finding.detail for each in found.findings.values() for finding in each}
    assert details["odd-size"] == "480×640 pixels"
    assert details["odd-shape"] == "24×180 pixels"
    assert details["leak"] == "nearly equal; train and test"
    assert details["spelling"] == '1 image; "dog" has 35'


def test_copies_stand_beside_what_they_are_copies_of(found: Audit) -> None:
    names = found.dataset.names
    [leak] = found.findings["leak"]
    assert leak.other is not None
    assert names[leak.other] == "test/cat/40.png"
    by_name = {finding.name: finding for finding in found.findings["contradiction"]}
    outvoted = by_name["train/cat/outvoted.png"]
    assert (outvoted.action, outvoted.label) == ("corrected", "dog")
    assert {by_name[f"train/{label}/both.png"].action for label in ("cat", "dog")} == {"left out"}
    groups = [{names[image] for image in group} for group in copy_groups(found.dataset)]
    assert {"train/dog/20.png", "train/dog/copy.png"} in groups
    assert [names[group[0]] for group in copy_groups(found.dataset)].count("test/cat/40.png") == 1


def test_where_all_images_are_dark_none_stands_out(tmp_path: Path) -> None:
    for label, seeds in (("a", range(10)), ("b", range(10, 20))):
        (tmp_path / label).mkdir()
        for seed in seeds:
            scene(seed).point(lambda level: level // 5).save(tmp_path / label / f"{seed}.png")
    scene(30).point(lambda level: level // 20).save(tmp_path / "a" / "darker.png")
    assert [finding.name for finding in audit(tmp_path).findings["dark"]] == ["a/darker.png"]


def test_sizes_that_vary_are_not_odd(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for seed in range(20):
        scene(seed).resize((60 + 6 * seed, 50 + 2 * seed)).save(tmp_path / "a" / f"{seed}.png")
    scene(20).resize((9, 9)).save(tmp_path / "a" / "tiny.png")
    found = audit(tmp_path).findings
    assert [finding.name for finding in found["odd-size"]] == ["a/tiny.png"]
    assert not found["odd-shape"]


def test_color_among_gray(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for seed in range(6):
        scene(seed).convert("L").save(tmp_path / "a" / f"{seed}.png")
    scene(6).save(tmp_path / "a" / "color.png")
    [finding] = audit(tmp_path).findings["odd-color"]
    assert (finding.name, finding.detail) == ("a/color.png", "color")


def test_small_classes_and_spellings() -> None:
    labels = np.repeat([0, 1, 2, 3], [300, 25, 30, 1])
    dataset = ImageDataset(
        classes=("Sea lion", "dog", "ox", "sea-lion"),
        names=[str(index) for index in range(len(labels))],
        labels=labels,
        splits=np.full(len(labels), ""),
        images=np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8),
    )
    assert merged_spellings(dataset) == {"sea-lion": "Sea lion"}
    from skipnets.report.findings import class_findings

    found = {(finding.kind, finding.name): finding for finding in class_findings(dataset)}
    assert set(found) == {("spelling", "sea-lion"), ("small-class", "dog")}
    assert found["small-class", "dog"].detail == "25 images; the largest class has 300"
    assert actions(found.values()) == "1 corrected, 1 kept"


def test_near_copies_with_different_labels_are_marked(tmp_path: Path) -> None:
    for label, seeds in (("a", range(8)), ("b", range(8, 16))):
        (tmp_path / label).mkdir()
        for seed in seeds:
            scene(seed).save(tmp_path / label / f"{seed}.png")
    scene(0).save(tmp_path / "b" / "0.jpg", quality=85)
    [finding] = audit(tmp_path).findings["contradiction"]
    assert (finding.name, finding.action, finding.label) == ("b/0.jpg", "marked", None)
    assert finding.detail == "nearly equal; labels b and a"


def test_many_equal_files_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("L", (20, 20), 7).save(tmp_path / "a" / "0.png")
    for index in range(1, 300):
        (tmp_path / "a" / f"{index}.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    found = audit(tmp_path).findings
    assert len(found["exact-copy"]) == 299
    assert len(found["blank"]) == 300


def test_groups_across_given_splits(tmp_path: Path) -> None:
    """Patient 0 is in train and test, 1 in train and val, 2 in train alone."""
    places = {"train": (0, 0, 1, 2, 2), "val": (1, 3), "test": (0, 4)}
    for split, patients in places.items():
        (tmp_path / split / "a").mkdir(parents=True)
        for number, patient in enumerate(patients):
            seed = len(list(tmp_path.rglob("*.png")))
            scene(seed).save(tmp_path / split / "a" / f"p{patient}_{number}.png")
    found = audit(tmp_path, options=DataOptions(group_pattern=r"p\d"))
    told = {finding.name: (finding.detail, finding.action) for finding in found.findings["divided-group"]}
    assert told == {
        "train/a/p0_0.png": ("p0; train and test", "left out"),
        "train/a/p0_1.png": ("p0; train and test", "left out"),
        "train/a/p1_2.png": ("p1; train and val", "left out"),
    }
    assert not audit(tmp_path).findings["divided-group"]
    found.write_manifest(tmp_path / "clean.csv")
    cleaned = find_with_own_splits(tmp_path / "clean.csv")
    assert len(cleaned) == 6
    assert cleaned.groups is not None
    check_groups(cleaned, np.zeros(6, dtype=bool))  # raises where a group crosses splits


def test_copies_of_one_another_and_of_groups_leave_no_group_across_splits(tmp_path: Path) -> None:
    """The image in train that links patients 0 and 1 goes; what stays crosses no split."""
    for split, names in (("train", ("p0_0", "p1_1")), ("val", ("p1_2",)), ("test", ("p0_3", "p2_4"))):
        (tmp_path / split / "a").mkdir(parents=True)
        for name in names:
            scene(int(name[-1])).save(tmp_path / split / "a" / f"{name}.png")
    scene(2).save(tmp_path / "train" / "a" / "p0_9.jpg", quality=85)
    found = audit(tmp_path, options=DataOptions(group_pattern=r"p\d"))
    found.write_manifest(tmp_path / "clean.csv")
    cleaned = find_with_own_splits(tmp_path / "clean.csv")
    assert cleaned.names == ["test/a/p0_3.png", "test/a/p2_4.png", "val/a/p1_2.png"]
    check_groups(cleaned, np.zeros(3, dtype=bool))
