"""An audit counts everything, checks labels where it can, and says what it could not look for."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.flawed import FOUND, scene, write_flawed, write_predictions

from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.errors import UserError
from skipnets.report import Audit, audit
from skipnets.report.findings import KINDS


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("flawed")
    write_flawed(folder / "pets")
    write_predictions(folder / "pets", folder / "p.csv")
    return audit(folder / "pets", folder / "p.csv")


def test_counts(checked: Audit) -> None:
    told = checked.to_dict()
    assert told["findings"] == {kind: len(FOUND.get(kind, ())) for kind in KINDS} | {"label-error": 2}
    assert told["images"] == len(checked.dataset) == 61
    assert told["splits"] == {"train": 41, "test": 20}
    names = {
        finding.name for each in checked.findings.values() for finding in each if finding.image is not None
    }
    assert told["images_with_findings"] == len(names)
    assert json.loads(json.dumps(told)) == told


def test_labels_are_checked_and_given_tests_are_not_corrected(checked: Audit) -> None:
    found = {finding.name: finding for finding in checked.findings["label-error"]}
    assert set(found) == {"train/cat/7.png", "test/cat/47.png"}
    assert {finding.label for finding in found.values()} == {"dog"}
    assert found["train/cat/7.png"].action == "corrected"
    assert found["test/cat/47.png"].action == "marked"
    check = checked.label_check
    assert check is not None
    # All but one JPEG, and one image of a class that is not predicted.
    assert check.images == 59
    assert check.agreement == pytest.approx(56 / 59)
    assert "labels of 2 images were not checked: there is no prediction" in checked.notes


def test_images_without_a_prediction_are_told_from_those_that_were_trained_on(checked: Audit) -> None:
    assert checked.label_check is not None
    some = replace(checked, label_check=replace(checked.label_check, images=40, trained_on=14))
    assert [note for note in some.notes if note.startswith("labels of")] == [
        "labels of 40 images were checked; 14 others were trained on, which takes out-of-fold predictions "
        "(skipnets train DATA --folds 5)",
        "labels of 7 images were not checked: there is no prediction",
    ]
    rest = replace(checked, label_check=replace(checked.label_check, images=40, trained_on=21))
    assert not [note for note in rest.notes if "no prediction" in note]


def test_every_finding_is_in_the_table(checked: Audit, tmp_path: Path) -> None:
    checked.write_findings(tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, checked.findings.values()))
    [leak] = [row for row in rows if row["kind"] == "leak"]
    assert leak == {
        "kind": "leak",
        "name": "train/cat/seen.jpg",
        "label": "cat",
        "split": "train",
        "detail": "nearly equal; train and test",
        "suggested_label": "",
        "copy_of": "test/cat/40.png",
        "copy_label": "cat",
        "copy_split": "test",
        "action": "left out",
    }


def test_it_prints_what_was_found(checked: Audit) -> None:
    lines = [" ".join(line.split()) for line in str(checked).splitlines()]
    assert "Copies across splits 1 left out" in lines
    assert "Probable label errors 2 1 corrected, 1 marked" in lines
    assert any(line.startswith("labels 94.9% of 59 as predicted by") for line in lines)


def test_what_could_not_be_looked_for_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene(0).save(tmp_path / "a" / "0.png")
    found = audit(tmp_path)
    assert found.notes[0].startswith("label errors were not looked for: that takes a model")
    assert "leaks were not looked for: the data have no splits" in found.notes
    assert not {"label-error", "leak"} & set(found.looked_for)
    assert not found.has_splits


def test_label_errors_of_a_weak_model_are_withheld(tmp_path: Path) -> None:
    for label, seeds in (("a", range(10)), ("b", range(10, 20))):
        (tmp_path / "set" / label).mkdir(parents=True)
        for seed in seeds:
            scene(seed).save(tmp_path / "set" / label / f"{seed}.png")
    rows = [
        f"{label}/{seed}.png,0.4,0.6"
        for label, start in (("a", 0), ("b", 10))
        for seed in range(start, start + 8)
    ]
    (tmp_path / "p.csv").write_text("\n".join(["path,a,b", *rows, "a/8.png,0.1,0.9", "b/18.png,0.9,0.1", ""]))
    found = audit(tmp_path / "set", tmp_path / "p.csv")
    assert "label errors are not listed: the model agrees with 44% of the labels only" in " ".join(
        found.notes
    )
    assert found.findings["label-error"] == []
    assert "label-error" not in found.looked_for


def test_a_class_spelled_differently_in_test_is_a_finding_and_no_error(tmp_path: Path) -> None:
    for name, seeds in (("train/cat", range(4)), ("train/dog", range(4, 8)), ("test/Cat", range(8, 11))):
        (tmp_path / name).mkdir(parents=True)
        for seed in seeds:
            scene(seed).save(tmp_path / name / f"{seed}.png")
    [finding] = audit(tmp_path).findings["spelling"]
    assert (finding.name, finding.label) == ("Cat", "cat")


def test_files_of_a_manifest_that_are_not_there(tmp_path: Path) -> None:
    for seed in range(3):
        scene(seed).save(tmp_path / f"{seed}.png")
    rows = [f"{seed}.png,{'ab'[seed % 2]}" for seed in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, ""]))
    found = audit(tmp_path / "list.csv")
    assert [finding.name for finding in found.findings["missing"]] == sorted(f"{n}.png" for n in range(3, 40))
    assert len(found.dataset) == 3


def test_named_datasets_and_steps() -> None:
    steps: dict[str, tuple[int, int]] = {}
    found = audit("digits", progress=lambda what, done, total: steps.update({what: (done, total)}))
    assert steps == {"looking at images": (1797, 1797)}
    assert not {"near-copy", "blurred"} & set(found.looked_for)
    note = "near copies and blur were not looked for in images of less than 16 pixels: all of them"
    assert note in found.notes
    # Digits as they are published: all alike, and none stands out.
    assert not any(found.findings.values())
    with pytest.raises(UserError, match=r"write=clean\.csv: digits does not lie in files"):
        found.write_manifest("clean.csv")


def test_pages_are_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pages = [scene(seed) for seed in range(3)]
    pages[0].save(tmp_path / "a" / "0.tif", save_all=True, append_images=[*pages[1:], pages[0]])
    found = audit(tmp_path, options=DataOptions(page="all"))
    assert len(found.dataset) == 4
    [copy] = [*found.findings["near-copy"], *found.findings["exact-copy"]]
    assert copy.name == "a/0.tif#page=4"


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder, manifest or named dataset"):
        audit(tmp_path / "nowhere")
    with pytest.raises(UserError, match="workers=0: must be at least 1"):
        audit("digits", workers=0)


def test_numbers_of_a_program_are_looked_at_as_well() -> None:
    dataset = ImageDataset(
        classes=("age",),
        names=["a", "b"],
        labels=np.array([[1.0], [2.0]]),
        splits=np.array(["", ""]),
        images=np.zeros((2, 20, 20), np.uint8),
        regression=True,
    )
    contradictions = audit(dataset).findings["contradiction"]
    assert {(each.name, each.detail) for each in contradictions} == {
        ("a", "equal byte by byte; age 1 and 2"),
        ("b", "equal byte by byte; age 2 and 1"),
    }


def test_an_open_dataset() -> None:
    pixels = np.stack([np.asarray(scene(seed)) for seed in (0, 1, 2, 3, 4, 5, 6, 0)])
    dataset = ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(8)],
        labels=np.repeat([0, 1], 4),
        splits=np.array(["train", "test"] * 4),
        images=pixels,
    )
    found = audit(dataset)
    assert found.data == "images in memory"
    [leak] = found.findings["leak"]
    assert (leak.name, leak.detail) == ("0", "equal byte by byte; train and test")
