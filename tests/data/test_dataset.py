"""What a dataset says of its images."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers.folders import folder, put

from skipnets.data import open_dataset
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
