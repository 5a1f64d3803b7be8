"""An audit of images with several labels: each label judged alone, copies that contradict one another."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from scipy.special import logit
from sklearn.metrics import cohen_kappa_score
from tests.helpers.flawed import scene

from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.errors import UserError
from skipnets.evaluation.calibration import fit_label_temperature
from skipnets.probabilities import sigmoid
from skipnets.report import Audit, audit
from skipnets.report.findings import copy_findings
from skipnets.report.label_audit import check_labels, co_occurrence, label_counts
from skipnets.report.predictions import UnseenPredictions

NAN = float("nan")
LABELS = ("edema", "mass", "hernia")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """40 scenes, of which 3 are equal with other marks, one lies in test as well, and 2 marks are wrong."""
    folder = tmp_path_factory.mktemp("several")
    generator = np.random.default_rng(0)
    rows, predictions = [], []
    for index in range(40):
        name = f"{index:02}.png"
        scene(5 if index in (37, 38) else 0 if index == 39 else index).save(folder / name)
        marks = (generator.random(3) < 0.45).astype(int).tolist()
        shares = np.clip(np.where(np.array(marks) == 1, 0.8, 0.2) + generator.normal(0, 0.08, 3), 0.01, 0.99)
        shares[2] = generator.random()  # nothing is known of hernias
        if index in (5, 37, 38):
            marks = [int(index == 5), 1, 0]
        if index in (10, 20):
            marks[0] = 1 - marks[0]
        if index == 3:
            marks[1] = ""
        rows.append([name, "test" if 30 <= index < 37 else "train", *marks])
        predictions.append([name, *shares.tolist()])
    rows[39][2:] = rows[0][2:]
    rows[0][1] = "test"
    for path, head, lines in (
        ("list.csv", ["path", "split", *LABELS], rows),
        ("p.csv", ["path", *(f"p:{name}" for name in LABELS)], predictions),
    ):
        with (folder / path).open("w", newline="") as file:
            csv.writer(file).writerows([head, *lines])
    return audit(folder / "list.csv", folder / "p.csv")


def test_marks_are_doubted_where_cleanlab_doubts_them_and_a_useless_prediction_doubts_none(
    checked: Audit,
) -> None:
    dataset = checked.dataset
    errors = checked.findings["label-error"]
    found = {(each.name, each.detail.partition(":")[0]) for each in errors}
    assert {("10.png", "edema"), ("20.png", "edema")} <= found
    assert all(each.action == "marked" for each in errors)
    assert not [name for _, name in found if name == "hernia"]
    check = checked.label_check
    assert check is not None
    assert check.labels_withheld == ("hernia",)
    assert "errors of hernia are not listed" in " ".join(checked.notes)
    [first] = [each for each in errors if each.name == "10.png" and each.detail.startswith("edema")]
    given = set(dataset.label_names[10].split("|")) - {"(none)"}
    assert set((first.label or "").split("|")) - {"(none)"} == given ^ {"edema"}

    table = np.genfromtxt(
        Path(checked.data).with_name("p.csv"), delimiter=",", skip_header=1, usecols=(1, 2, 3)
    )
    labels = np.nan_to_num(dataset.labels[:, 0])
    logits = logit(table[:, 0])
    shares = sigmoid(logits, fit_label_temperature(logits[:, None], labels[:, None]))
    expected = find_multilabel_issues_per_class(
        [[0] if mark else [1] for mark in labels],
        np.stack([shares, 1 - shares], axis=1),
        filter_by="both",
        n_jobs=1,
    )
    assert {name for name, label in found if label == "edema"} == {
        dataset.names[index] for index in np.flatnonzero(expected[:, 0])
    }


def test_agreement_is_cohens_at_as_many_present_as_are_marked() -> None:
    generator = np.random.default_rng(1)
    labels = (generator.random((200, 1)) < 0.1).astype(np.float32)
    scores = generator.random((200, 1)) * 0.2 + 0.2 * labels  # below one half everywhere
    dataset = images(labels, ("rare",))
    predictions = UnseenPredictions(
        source="x", classes=("rare",), images=np.arange(200), probabilities=scores.astype(np.float64)
    )
    _, check = check_labels(dataset, predictions)
    highest = np.argsort(-scores[:, 0])[: int(labels.sum())]
    assert check.kappa == pytest.approx(cohen_kappa_score(labels[:, 0], np.isin(np.arange(200), highest)))
    assert check.agreement == pytest.approx((labels[:, 0] == np.isin(np.arange(200), highest)).mean())


def images(labels: np.ndarray, classes: tuple[str, ...]) -> ImageDataset:
    return ImageDataset(
        classes=classes,
        names=[f"{index:03}" for index in range(len(labels))],
        labels=labels.astype(np.float32),
        splits=np.full(len(labels), "train"),
        images=np.zeros((len(labels), 4, 4), np.uint8),
    )


def test_copies_contradict_one_another_in_known_labels_alone(checked: Audit) -> None:
    found = {each.name: each for each in checked.findings["contradiction"]}
    assert set(found) == {"05.png"}
    assert found["05.png"].detail == "equal byte by byte; edema present and absent"
    # Two of three say that there is none.
    assert (found["05.png"].action, found["05.png"].label) == ("corrected", "mass")
    assert [each.name for each in checked.findings["leak"]] == ["39.png"]
    dataset = checked.dataset
    again = dataset.select(np.arange(len(dataset)))
    again.labels[37] = [NAN, 0, 1]  # now one says so and one does not
    undecided = [each for each in copy_findings(again) if each.kind == "contradiction"]
    assert {(each.name, each.action, each.label) for each in undecided} == {
        ("38.png", "left out", None),
        ("05.png", "left out", None),
    }
    again.labels[38] = [NAN, 0, NAN]
    assert not [each for each in copy_findings(again) if each.kind == "contradiction"]


def test_counts_and_what_occurs_together() -> None:
    labels = np.array([[1, 1, 0], [1, 0, NAN], [1, 1, 0], [0, 0, 0]], np.float32)
    dataset = images(labels, LABELS)
    expected = [
        [sum(row[a] == 1 and row[b] == 1 for row in labels.tolist()) for b in range(3)] for a in range(3)
    ]
    assert co_occurrence(dataset).tolist() == expected
    first, _, last = label_counts(dataset)
    assert first == {
        "name": "edema", "present": 3, "absent": 1, "unknown": 0, "together_with": {"mass": 2}
    }  # fmt: skip
    assert (last["present"], last["absent"], last["unknown"]) == (0, 3, 1)


def test_the_page_the_table_and_a_corrected_manifest(checked: Audit, tmp_path: Path) -> None:
    assert checked.label_check is not None
    checked.write_page(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "40 images with any number of 3 labels each" in page
    assert "Labels that occur together" in page
    together = int(((checked.dataset.labels[:, ::2] == 1).all(1)).sum())
    assert f">{together}</td>" in page
    checked.write_findings(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "contradiction"]
    assert [(row["label"], row["suggested_label"]) for row in rows] == [("edema|mass", "mass")]
    told = checked.to_dict()
    assert json.loads(json.dumps(told))["labels"][2]["unknown"] == 1
    assert f"{checked.label_check.agreement:.1%} of all marks of 40 images as predicted by" in str(checked)

    manifest = Path(checked.data).with_name("clean.csv")
    checked.write_manifest(manifest)
    clean = find_dataset(manifest, fractions=None, options=DataOptions())
    assert clean.classes == tuple(sorted(LABELS))
    assert "39.png" not in clean.names
    before = dict(zip(checked.dataset.names, checked.dataset.label_names, strict=True))
    after = dict(zip(clean.names, clean.label_names, strict=True))
    assert after["05.png"] == "mass"
    assert {name for name in after if after[name] != before[name]} == {"05.png"}
    assert dict(zip(clean.names, clean.splits.tolist(), strict=True))["30.png"] == "test"


def test_predictions_of_one_class_an_image_do_not_pass_for_several(checked: Audit, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,p:edema\n00.png,1.5\n")
    with pytest.raises(UserError, match=r"the probabilities of 00\.png must be from 0 to 1$"):
        audit(checked.data, path)


def test_labels_of_one_value_are_not_said_to_be_wrongly_predicted() -> None:
    dataset = ImageDataset(
        classes=("edema", "mass"),
        names=["a", "b", "c"],
        labels=np.array([[1, 0], [1, NAN], [1, 0]], np.float32),
        splits=np.array([""] * 3, dtype="<U5"),
        images=np.random.default_rng(0).integers(0, 255, (3, 20, 20), dtype=np.uint8),
    )
    predictions = UnseenPredictions(
        source="p.csv", classes=("edema", "mass"), images=np.arange(3), probabilities=np.full((3, 2), 0.4)
    )
    findings, check = check_labels(dataset, predictions)
    assert (findings, check.agreement, check.kappa, check.withheld) == ([], None, None, True)
    assert check.reason == (
        "every label has one value in all images that were checked, so none can be contradicted"
    )
    assert json.loads(json.dumps(check.to_dict()))["agreement"] is None
