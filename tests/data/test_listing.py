from __future__ import annotations

import random
from collections import Counter

import pytest

from skipnets.data.listing import counted, natural_key, passed_over_line
from skipnets.errors import listed


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "10", "100"],
        ["img2", "img10", "img10b", "img11"],
        ["2024-9-30", "2024-10-1"],
        ["5", "a", "B", "c"],
    ],
)
def test_numbers_are_sorted_as_numbers(ordered: list[str]) -> None:
    mixed = ordered.copy()
    random.Random(1).shuffle(mixed)
    assert sorted(mixed, key=natural_key) == ordered


def test_the_first_names_and_how_many_there_are_beyond() -> None:
    assert listed("abcde") == "a, b, c, d, e"
    assert listed(map(str, range(1205))) == "0, 1, 2, 3, 4 and 1,200 more"
    assert passed_over_line(Counter({".txt": 1, ".heic": 3700}), most=1) == "3,700 .heic and 1 more"


def test_nouns_follow_their_number() -> None:
    assert [counted(count, "image") for count in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert counted(2, "class", "classes") == "2 classes"
