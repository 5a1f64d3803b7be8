"""The corrected manifest puts right what is wrong for sure, marks the rest, and is trained from as it is."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from tests.helpers.flawed import scene, write_flawed, write_predictions

from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.report import Audit, audit
from skipnets.report.correction import corrected


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("flawed")
    write_flawed(folder / "pets")
    write_predictions(folder / "pets", folder / "p.csv")
    return audit(folder / "pets", folder / "p.csv")


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_the_manifest(checked: Audit, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = checked.dataset.root
    assert root is not None
    checked.write_manifest(root.parent / "clean.csv")
    rows = {path.removeprefix("pets/"): row for path, row in read(root.parent / "clean.csv").items()}
    left_out = {name for name in checked.dataset.names if name not in rows}
    assert left_out == {
        "train/dog/broken.png",
        "train/cat/seen.jpg",
        "train/cat/both.png",
        "train/dog/both.png",
    }
    changed = {name: row["label"] for name, row in rows.items() if row["label"] != row["given_label"]}
    assert changed == {"train/cat/7.png": "dog", "train/cat/outvoted.png": "dog", "train/Dog/80.png": "dog"}
    assert rows["train/cat/7.png"]["reason"] == "label-error: 99.3% dog, 0.7% cat; corrected"
    assert rows["test/cat/47.png"]["label"] == "cat"
    assert rows["test/cat/47.png"]["reason"] == "label-error: 99.3% dog, 0.7% cat; marked"
    assert rows["train/dog/blank.png"]["reason"] == "blank: all of about one gray level, 90; marked"
    assert rows["train/dog/22.png"]["reason"] == ""
    assert rows["train/dog/20.png"]["split_group"] == rows["train/dog/copy.png"]["split_group"]
    assert rows["train/dog/22.png"]["split_group"] != rows["train/dog/20.png"]["split_group"]
    assert {row["split"] for row in rows.values()} == {"train", "test"}


def test_it_is_read_as_it_is(checked: Audit, tmp_path: Path) -> None:
    checked.write_manifest(tmp_path / "clean.csv")
    dataset = find_dataset(tmp_path / "clean.csv", duplicates="keep-together")
    assert dataset.classes == ("cat", "dog")
    assert dataset.listing.columns["split_group"] == "group"
    assert len(dataset) == 57
    # Its splits are kept; validation images are cut from train, and no copy crosses.
    split_of = dict(zip((Path(name).name for name in dataset.names), dataset.splits.tolist(), strict=True))
    assert split_of["20.png"] == split_of["copy.png"]
    assert set(dataset.splits) == {"train", "val", "test"}
    assert not [warning for warning in dataset.listing.warnings if "copies of one another" in warning]


def test_names_that_a_spreadsheet_would_take_for_formulas(tmp_path: Path) -> None:
    classes = ("+1 day", "-dash", "=sum", "@home", "plain")
    for number, label in enumerate(classes):
        (tmp_path / label).mkdir()
        for seed in range(2):
            scene(2 * number + seed).save(tmp_path / label / f"{seed}.png")
    audit(tmp_path).write_manifest(tmp_path / "clean.csv")
    assert ",'@home," in (tmp_path / "clean.csv").read_text()
    dataset = find_dataset(tmp_path / "clean.csv", fractions=None)
    assert dataset.classes == classes
    assert dataset.names == [f"{label}/{seed}.png" for label in classes for seed in range(2)]


def test_further_kinds_are_dropped(checked: Audit, tmp_path: Path) -> None:
    checked.write_manifest(tmp_path / "clean.csv", drop=("blank", "exact-copy"))
    names = {Path(path).name for path in read(tmp_path / "clean.csv")}
    assert not names & {"blank.png", "copy.png", "two.png", "three.png"}
    assert {"20.png", "dark.png", "near.png"} <= names
    with pytest.raises(UserError, match=r"drop='blurry': must be one of .*; did you mean blurred\?"):
        checked.write_manifest(tmp_path / "x.csv", drop=("blurry",))
    assert not (tmp_path / "x.csv").exists()


def test_copies_and_groups_stay_together(tmp_path: Path) -> None:
    """p0 and p1 share an image, so all four of their images are one unit."""
    for label, seeds in (("a", range(12)), ("b", range(12, 24))):
        (tmp_path / label).mkdir()
        for seed in seeds:
            scene(seed).save(tmp_path / label / f"p{seed // 2}_{seed}.png")
    scene(0).save(tmp_path / "a" / "p1_copy.jpg", quality=85)
    found = audit(tmp_path, options=DataOptions(group_pattern=r"p\d+"))
    found.write_manifest(tmp_path / "clean.csv")
    rows = read(tmp_path / "clean.csv")
    assert "split" not in next(iter(rows.values()))
    unit = {name for name, row in rows.items() if row["split_group"] == rows["a/p0_0.png"]["split_group"]}
    assert unit == {"a/p0_0.png", "a/p0_1.png", "a/p1_2.png", "a/p1_3.png", "a/p1_copy.jpg"}
    dataset = find_dataset(tmp_path / "clean.csv")
    assert (
        len({str(split) for name, split in zip(dataset.names, dataset.splits, strict=True) if name in unit})
        == 1
    )


def test_copies_decide_before_a_model_does(tmp_path: Path) -> None:
    write_flawed(tmp_path / "pets")
    write_predictions(tmp_path / "pets", tmp_path / "p.csv")
    text = (tmp_path / "p.csv").read_text().splitlines()
    # The model is sure that all three copies are cats; two of three labels say dog.
    text = [
        f"{name},x,0.999,0.001" if name.endswith(("outvoted.png", "two.png", "three.png")) else line
        for line in text
        for name in [line.partition(",")[0]]
    ]
    (tmp_path / "p.csv").write_text("\n".join([*text, ""]))
    found = audit(tmp_path / "pets", tmp_path / "p.csv")
    actions = {finding.name: finding.action for finding in found.findings["label-error"]}
    assert actions["train/dog/two.png"] == actions["train/dog/three.png"] == "marked"
    changes = dict(zip(found.dataset.names, corrected(found), strict=True))
    for name in ("train/cat/outvoted.png", "train/dog/two.png", "train/dog/three.png"):
        assert changes[name].label == "dog", name


def test_equal_files_are_corrected_together_or_not_at_all(tmp_path: Path) -> None:
    write_flawed(tmp_path / "pets")
    write_predictions(tmp_path / "pets", tmp_path / "p.csv")
    lines = (tmp_path / "p.csv").read_text().splitlines()

    def labels(cats: tuple[str, ...]) -> tuple[str, str]:
        changed = [
            f"{name},x,0.999,0.001" if name in cats else line
            for line in lines
            for name in [line.partition(",")[0]]
        ]
        (tmp_path / "p.csv").write_text("\n".join([*changed, ""]))
        found = audit(tmp_path / "pets", tmp_path / "p.csv")
        assert cats[0] in {each.name for each in found.findings["label-error"]}
        changes = dict(zip(found.dataset.names, corrected(found), strict=True))
        return changes["train/dog/20.png"].label, changes["train/dog/copy.png"].label

    assert labels(("train/dog/copy.png",)) == ("dog", "dog")
    assert labels(("train/dog/20.png", "train/dog/copy.png")) == ("cat", "cat")


def test_what_cannot_be_listed_is_refused(tmp_path: Path, checked: Audit) -> None:
    with pytest.raises(UserError, match=r"write=.*clean\.txt: must end in \.csv"):
        checked.write_manifest(tmp_path / "clean.txt")
    (tmp_path / "a").mkdir()
    scene(0).save(tmp_path / "a" / "0.tif", save_all=True, append_images=[scene(1)])
    with pytest.raises(UserError, match=r"a manifest lists files, not their pages; leave out --page all"):
        audit(tmp_path, options=DataOptions(page="all")).write_manifest(tmp_path / "clean.csv")
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no image is left"):
        audit(tmp_path / "b").write_manifest(tmp_path / "clean.csv")


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    name = os.fsdecode(b'caf\xe9, "1".png')
    scene(0).save(tmp_path / "a" / name)
    audit(tmp_path).write_manifest(tmp_path / "clean.csv")
    with (tmp_path / "clean.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        [row] = csv.DictReader(file)
    # Without splits, copies and groups.
    assert row == {"path": f"a/{name}", "label": "a", "given_label": "a", "reason": ""}
