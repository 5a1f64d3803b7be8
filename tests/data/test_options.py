from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skipnets.data.options import DataOptions
from skipnets.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "class"}, "layout='class': must be one of auto, classes, splits; did you mean classes"),
        ({"class_order": "numeric"}, "class_order='numeric': must be one of alphabetical, natural"),
        ({"missing": "ignore"}, "missing='ignore': must be one of error, skip"),
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
