from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skipnets.data.options import DataOptions, options_of_images
from skipnets.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "class"}, "layout='class': must be one of auto, classes, splits; did you mean classes"),
        ({"class_order": "numeric"}, "class_order='numeric': must be one of alphabetical, natural"),
        ({"missing": "ignore"}, "missing='ignore': must be one of error, skip"),
        ({"targets": ("a",), "uncertain": "positive"}, "uncertain=positive: must not be given with numbers"),
        ({"page": 0}, "page=0: must be a number from 1, or all"),
        ({"page": "last"}, "page='last': must be a number from 1, or all"),
        ({"group_pattern": "("}, "group_pattern='(': not a regular expression"),
    ],
)
def test_a_wrong_value_says_what_would_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        DataOptions(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("page", [None, 1, 7, "all"])
def test_pages(page: Any) -> None:
    assert DataOptions(page=page).page == page


def test_options_as_they_are_typed(tmp_path: Path) -> None:
    options = DataOptions(exclude=("a", "b c"), root=tmp_path, page="all", missing="skip")
    words = [
        "--exclude",
        "a",
        "--exclude",
        "b c",
        "--root",
        str(tmp_path),
        "--page",
        "all",
        "--missing",
        "skip",
    ]
    assert options.arguments() == words
    assert options.arguments(("page",)) == ["--page", "all"]
    assert DataOptions().arguments() == []


@pytest.mark.parametrize(
    ("options", "task", "expected"),
    [
        ({}, "single-label", {"task": "single-label"}),
        ({}, "multi-label", {"task": "multi-label"}),
        ({}, "regression", {"task": "regression", "targets": ("a", "b")}),
        ({"targets": ("c",)}, "regression", {"targets": ("c",)}),
        ({"targets": ("c",)}, "single-label", {"targets": ("c",)}),
        ({"label_columns": ("c",)}, "single-label", {"label_columns": ("c",)}),
        ({"label_columns": ("c",)}, "multi-label", {"label_columns": ("c",), "task": "multi-label"}),
        ({"task": "single-label"}, "regression", {"task": "single-label"}),
    ],
)
def test_data_are_read_as_the_model_is_unless_the_options_tell_the_task(
    options: dict[str, Any], task: Any, expected: dict[str, Any]
) -> None:
    assert DataOptions(**options).of_model(task, ["a", "b"]) == DataOptions(**expected)


def test_where_images_alone_count_only_a_table_of_numbers_needs_options(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,a\n")
    assert options_of_images(path, "regression", ["a"]) == DataOptions(task="regression", targets=("a",))
    assert options_of_images(path, "multi-label", ["a"]) is None
    assert options_of_images(tmp_path, "regression", ["a"]) is None
    assert options_of_images("digits", "regression", ["a"]) is None
