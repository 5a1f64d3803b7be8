"""Tests that are as strict as they say, on answers that belong together."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.results import CLASSES, make_predictions, write_results

from skipnets.errors import UserError
from skipnets.evaluation.metrics import measure
from skipnets.report import compare
from skipnets.report.comparison import mcnemar
from skipnets.tables import as_text


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 1), (3, 3), (2, 9), (0, 12), (40, 61)])
def test_mcnemar_is_a_fair_coin(only_first: int, only_second: int) -> None:
    throws = only_first + only_second
    tail = sum(Fraction(comb(throws, k), 2**throws) for k in range(min(only_first, only_second) + 1))
    assert mcnemar(only_first, only_second) == pytest.approx(float(min(Fraction(1), 2 * tail)))
    assert mcnemar(only_first, only_second) == mcnemar(only_second, only_first)


def test_a_better_run_is_distinguished_from_an_equal_one(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 300, 1.0)
    good, _ = make_predictions(1, 300, 3.0, labels)
    equal, _ = make_predictions(2, 300, 1.0, labels)
    folders = [
        write_results(tmp_path / "first", logits, labels),
        write_results(tmp_path / "good", good, labels),
        write_results(tmp_path / "equal", equal, labels),
    ]
    comparison = compare(folders, resamples=400)
    assert comparison.runs == ("first", "good", "equal")
    assert (comparison.data, comparison.split, comparison.images) == ("pets", "test", 300)
    verdicts = {(each.run, each.metric): each for each in comparison.differences}
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "nll"):
        better = verdicts["good", metric]
        assert better.verdict == "better", metric
        low, high = better.interval
        assert low <= better.difference <= high
        assert (low > 0) == (metric != "nll")
        assert verdicts["equal", metric].verdict == "within noise", metric
    accuracy = verdicts["good", "accuracy"]
    right, good_right = logits.argmax(1) == labels, good.argmax(1) == labels
    assert accuracy.only_run_right == (good_right & ~right).sum()
    assert accuracy.only_first_right == (right & ~good_right).sum()
    assert accuracy.difference == pytest.approx(good_right.mean() - right.mean())
    assert accuracy.test == "exact McNemar"
    # Two comparisons: the smaller p-value is doubled.
    assert accuracy.p == pytest.approx(2 * mcnemar(accuracy.only_run_right, accuracy.only_first_right))
    assert verdicts["good", "nll"].test == "paired bootstrap"
    assert verdicts["good", "nll"].p == pytest.approx(2 * 2 / 401)
    assert "Holm" in comparison.notes[-1]
    assert "dims" not in json.loads(json.dumps(comparison.to_dict(), allow_nan=False))

    worse = {
        each.metric: each.verdict for each in compare([folders[1], folders[0]], resamples=400).differences
    }
    assert worse["accuracy"] == worse["nll"] == "worse"


def test_runs_on_volumes_are_said_to_be(tmp_path: Path) -> None:
    _, labels = make_predictions(0, 60, 1.0)
    comparison = compare(
        [
            write_results(tmp_path / name, make_predictions(seed, 60, 1.0, labels)[0], labels, dims=3)
            for seed, name in enumerate("ab")
        ],
        resamples=10,
    )
    text = as_text(comparison.tables())
    assert "volumes  60 (pets, test), the same for all" in text
    assert re.search(r"alone correct on \d+ volumes", " ".join(text.split()))
    assert "image" not in text
    assert comparison.to_dict()["dims"] == 3


def test_tables_of_any_number_of_runs_fit_80_columns(tmp_path: Path) -> None:
    _, labels = make_predictions(0, 300, 1.0)
    names = ("baseline-of-spring", "larger", "larger-and-longer")
    folders = [
        write_results(tmp_path / name, make_predictions(seed, 300, strength, labels)[0], labels)
        for seed, (name, strength) in enumerate(zip(names, (1.0, 1.1, 3.0), strict=True))
    ]
    comparison = compare(folders, resamples=50)
    text = as_text(comparison.tables())
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    accuracy = comparison.metrics[0]
    for name, value, (low, high) in zip(names, accuracy.values, accuracy.intervals, strict=True):  # type: ignore[misc]
        row = [name, f"{100 * value:.2f}%", f"{100 * low:.2f}%", "to", f"{100 * high:.2f}%"]
        assert row in [each[-5:] for each in rows], row
    for each in comparison.differences:
        if each.metric == "accuracy":
            said = f"{each.run} against {names[0]}: alone correct on {each.only_run_right} images"
            assert said in " ".join(text.split())


def test_metrics_equal_those_of_the_evaluation(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 200, 1.0)
    other, _ = make_predictions(1, 200, 2.0, labels)
    comparison = compare(
        [write_results(tmp_path / "a", logits, labels), write_results(tmp_path / "b", other, labels)],
        resamples=50,
    )
    for metric in comparison.metrics:
        for value, each in zip(metric.values, (logits, other), strict=True):
            expected = getattr(measure(each.astype(np.float32), labels), metric.name)
            assert value == pytest.approx(expected, abs=1e-5), metric.name
        for value, (low, high) in zip(metric.values, metric.intervals, strict=True):
            assert low < high
            assert metric.name == "ece" or low <= value <= high  # resampling cannot lower it
    assert [metric.name for metric in comparison.metrics] == [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "macro_auroc",
        "nll",
        "ece",
    ]


def test_intervals_have_a_width_where_no_answer_is_wrong(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 60, 1.0)
    perfect = write_results(tmp_path / "perfect", 20 * np.eye(3)[labels], labels)
    comparison = compare([write_results(tmp_path / "a", logits, labels), perfect], resamples=50)
    for metric in comparison.metrics:
        low, high = metric.intervals[1] or (0, 0)
        if metric.name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"):
            assert 0.8 < low < high == metric.values[1] == 1
    [note] = [note for note in comparison.notes if "Newcombe" in note]
    assert note.startswith(
        "perfect: every resample gives the same balanced accuracy, macro F1, macro AUROC: the interval shown"
    )


def test_copies_of_an_image_are_no_further_evidence(tmp_path: Path) -> None:
    """Twenty images, each ten times: with the groups told, tests and intervals are those of twenty."""
    first, labels = make_predictions(0, 20, 0.5)
    second, _ = make_predictions(1, 20, 2.5, labels)
    many = np.repeat(np.arange(20), 10)
    names = [f"patient {number}" for number in many]
    folders: dict[str, list[Path]] = {"alone": [], "copied": [], "grouped": []}
    for number, logits in enumerate((first, second)):
        for kind, groups in (("alone", None), ("copied", None), ("grouped", np.array(names))):
            of = np.arange(20) if kind == "alone" else many
            (folder := tmp_path / f"{kind}{number}").mkdir()
            folders[kind].append(write_results(folder, logits[of], labels[of], groups=groups))
    alone, copied, grouped = (compare(pair) for pair in folders.values())
    by_name = [{each.metric: each for each in found.differences} for found in (alone, copied, grouped)]
    assert by_name[1]["accuracy"].test == "exact McNemar"
    assert by_name[2]["accuracy"].test == "paired bootstrap"
    for metric in ("accuracy", "nll"):
        one, false, right = (found[metric] for found in by_name)
        assert right.interval == pytest.approx(one.interval, abs=0.06)
        assert false.interval[1] - false.interval[0] < 0.5 * (right.interval[1] - right.interval[0])
        assert false.p <= right.p
    assert "images of one group are drawn together: intervals and tests are of 20 groups" in grouped.notes
    wide, narrow = (found.metrics[0].intervals[0] for found in (grouped, copied))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 60, 1.0)
    a, b = write_results(tmp_path / "x/a", logits, labels), write_results(tmp_path / "y/a", logits, labels)
    comparison = compare([a, b], resamples=50)
    assert comparison.runs == (str(a), str(b))
    assert {(each.difference, each.p, each.verdict) for each in comparison.differences} == {
        (0, 1, "within noise")
    }


def test_false_alarms_are_as_rare_as_promised(tmp_path: Path) -> None:
    """Of runs that are equally good, at most about one in twenty may be called different."""
    rng = np.random.default_rng(0)
    alarms = {"accuracy": 0, "nll": 0}
    rounds = 60
    labels = rng.integers(0, 3, 150)
    for index in range(rounds):
        pair = [make_predictions(2 * index + k, 150, 1.0, labels)[0] for k in (0, 1)]
        folders = [write_results(tmp_path / f"{index}-{k}", each, labels) for k, each in enumerate(pair)]
        for each in compare(folders, resamples=200).differences:
            if each.metric in alarms:
                alarms[each.metric] += each.verdict != "within noise"
    # P(more than 8 of 60 at 0.05) is 0.003.
    assert alarms["accuracy"] <= 8
    assert 1 <= alarms["nll"] <= 8


def test_order_of_images_and_classes_does_not_matter(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 80, 1.0)
    other, _ = make_predictions(1, 80, 1.5, labels)
    a, b = write_results(tmp_path / "a", logits, labels), write_results(tmp_path / "b", other, labels)
    order = np.random.default_rng(0).permutation(80)
    columns = np.array([2, 0, 1])
    shuffled = write_results(
        tmp_path / "s" / "b",
        other[order][:, columns],
        np.argsort(columns)[labels[order]],
        classes=tuple(np.array(CLASSES)[columns]),
        names=[f"{index:05}.png" for index in order],
    )
    straight, turned = compare([a, b], resamples=50), compare([a, shuffled], resamples=50)
    for one, two in zip(straight.differences, turned.differences, strict=True):
        assert one.difference == pytest.approx(two.difference)
        assert one.p == pytest.approx(two.p)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 30, 1.0)
    a = write_results(tmp_path / "a", logits, labels)
    cases = {
        "their test images differ (1 are in one only: 00029.png)": write_results(
            tmp_path / "fewer", logits[:29], labels[:29]
        ),
        'they were evaluated on different splits ("test" and "val")': write_results(
            tmp_path / "val", logits, labels, split="val"
        ),
        "their classes differ (c, d)": write_results(tmp_path / "d", logits, labels, classes=("a", "b", "d")),
        '00000.png is "': write_results(tmp_path / "labels", logits, (labels + (np.arange(30) == 0)) % 3),
        f"{tmp_path / 'no'} is not a run folder": tmp_path / "no",
    }
    for message, folder in cases.items():
        with pytest.raises(UserError) as error:
            compare([a, folder])
        assert message in str(error.value)
    with pytest.raises(UserError, match="at least two, not 1"):
        compare([a])
    with pytest.raises(UserError, match="resamples=0: must be at least 1"):
        compare([a, cases["their classes differ (c, d)"]], resamples=0)
    with pytest.raises(UserError, match="runs: must be different folders, not "):
        compare([a, a.parent / "d" / ".." / a.name])


def test_other_data_of_the_same_names_are_noted(tmp_path: Path) -> None:
    logits, labels = make_predictions(0, 30, 1.0)
    a, b = (
        write_results(tmp_path / "a", logits, labels),
        write_results(tmp_path / "b", logits, labels, data="moved/pets"),
    )
    assert compare([a, b], resamples=10).notes == (
        "b was evaluated on moved/pets, a on pets; names and labels of the images are the same",
    )
