from __future__ import annotations

import pytest

from skipnets.errors import MissingExtraError, UserError, missing_extra, near_matches

KNOWN = ("densenet121", "densenet169", "resnet18")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [("densenet112", "densenet121"), ("resnet81", "resnet18"), ("DenseNet121", "densenet121")],
)
def test_the_nearest_name_comes_first(wrong: str, named: str) -> None:
    assert near_matches(wrong, KNOWN).startswith(f"; did you mean {named}")


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near_matches("alexnet-owt", ["vgg16"]) == ""
    assert near_matches("x", []) == ""


def test_a_missing_extra_is_an_error_of_the_user_with_the_command_to_type() -> None:
    error = missing_extra("deploy")
    assert isinstance(error, MissingExtraError)
    assert isinstance(error, UserError)
    assert isinstance(error, ValueError)
    assert str(error) == 'this needs the extra "deploy": pip install "skipnets[deploy]"'
