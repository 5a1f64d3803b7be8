"""What a dataset says of its images."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.folders import folder, put

from skipnets.data import ImageDataset, open_dataset
from skipnets.data.survey import survey
from skipnets.errors import UserError


def test_channels(tmp_path):
    assert open_dataset(folder(tmp_path / "color", a=3, b=3)).channels == 3
    gray = put(tmp_path / "gray", *(f"{c}/{n}.png" for c in "ab" for n in range(3)), mode="L")
    assert open_dataset(gray).channels == 1
    put(gray, "b/3.png")
    assert open_dataset(gray).channels == 3


@pytest.mark.parametrize(
    ("counts", "way"),
    [
        ((4, 5), "--exclude leaves"),
        ((3, 4), "--channels 3 takes the fourth of four"),
        ((5, 20), "--dims 3 takes arrays as volumes, or --exclude leaves"),
    ],
)
def test_mixed_numbers_of_channels_are_named_with_a_way_out(tmp_path, counts, way):
    for index in range(8):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        array = np.full((30, 30, counts[index // 2 % 2]), index, np.uint8)
        np.save(tmp_path / "ab"[index % 2] / f"{index}.npy", array)
    dataset = open_dataset(tmp_path, fractions=None)
    message = (
        f"images of {counts[0]} and {counts[1]} channels are mixed, where a model takes one number: {way}"
    )
    with pytest.raises(UserError, match=f"channels: {message}"):
        _ = dataset.channels
    assert any(line.startswith(message) for line in survey(dataset, "arrays").warnings)


def of_labels(labels, classes=("a", "b"), **fields):
    return ImageDataset(
        classes=classes,
        names=["0", "1"],
        labels=np.array(labels),
        splits=np.array(["train"] * 2),
        images=np.zeros((2, 4, 4), np.uint8),
        **fields,
    )


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (of_labels([0, 1, 1]), "must have 2 labels and splits, as it has names, not 3 and 2"),
        (of_labels([0.0, 1.0]), r"must be whole numbers \(N,\), not float64 of shape \(2,\)"),
        (of_labels([0, 2]), "must be from 0 to 1, not 0 to 2"),
        (of_labels([[1, 0, 1], [0, 0, 1]]), r"must be \(N, 2\), a column for each label, not int64 of shape"),
        (of_labels([[0.0, 2.0], [np.nan, 0.5]]), "must be 1, 0 or NaN for unknown, not 0.5, 2.0"),
        (of_labels([[0, 1], [1, 0]], classes=("a", "b|c")), "label 'b|c': must not hold"),
        (of_labels([1.5, 2.5], regression=True), r"\(N, 2\), a column for each target, not float64 of shape"),
        (of_labels([[1, np.inf], [2, 3]], regression=True), "must be finite, or NaN where one is not known"),
    ],
)
def test_labels_that_the_classes_do_not_describe_are_one_line(dataset, message):
    with pytest.raises(UserError, match=message):
        dataset.checked()


def test_labels_of_a_program_get_the_types_of_ours():
    for labels, fields, kind in (
        ([0, 1], {}, np.int64),
        ([[True, False], [False, True]], {}, np.float32),
        ([[1, 2], [3, 4]], {"regression": True}, np.float64),
    ):
        checked = of_labels(labels, **fields).checked().labels
        assert checked.dtype == kind
        np.testing.assert_array_equal(checked, labels)
