"""Which extra installs what, and how it can be installed here."""

from __future__ import annotations

import importlib.metadata
import json
import sys

import pytest

from skipnets.errors import (
    MissingExtraError,
    engine_command,
    listed,
    missing_extra,
    near_matches,
    needs_extra,
    one_line,
)


class _Installed:
    """A distribution that was installed from somewhere."""

    def __init__(self, origin: dict[str, object] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command", "engine"),
    [
        (None, 'pip install "skipnets[train]"', 'pip install "skipnets-engine"'),
        (
            {"url": "file:///home/me/a%20b", "dir_info": {}},
            'pip install "/home/me/a b[train]"',
            'pip install "/home/me/a b/engine"',
        ),
        (
            {"url": "file:///src", "dir_info": {"editable": True}},
            'pip install --editable "/src[train]"',
            'pip install "/src/engine"',
        ),
        (
            {"url": "https://example.org/s.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            'pip install "skipnets[train] @ git+https://example.org/s.git"',
            'pip install "skipnets-engine @ git+https://example.org/s.git#subdirectory=engine"',
        ),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came_from(
    origin: dict[str, object] | None, command: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: _Installed(origin))
    assert str(missing_extra("train")) == f'this needs the extra "train": {command}'
    assert engine_command() == engine


@pytest.mark.parametrize(
    ("library", "preferred", "named"),
    [
        ("torch", None, "train"),
        ("torch", "report", "report"),
        ("captum", None, "explain"),
        ("captum", "report", "report"),
        ("openvino", "train", "deploy"),
        ("starlette", None, "serve"),
    ],
)
def test_a_missing_library_names_an_extra_that_installs_it(
    library: str, preferred: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=f'the extra "{named}"') as caught, needs_extra(preferred):
        __import__(library)
    assert caught.value.library == library
    with pytest.raises(MissingExtraError, match=f'the extra "{named}"'), needs_extra(preferred):
        raise missing_extra(named, library)


def test_the_package_that_was_asked_for_has_the_last_word() -> None:
    below = missing_extra("train", "torch")
    with pytest.raises(MissingExtraError, match='the extra "report"'), needs_extra(), needs_extra("report"):
        raise below
    with pytest.raises(MissingExtraError, match='the extra "train"'), needs_extra("serve"):
        raise below


def test_other_missing_modules_are_defects() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"skipnets\.nowhere"), needs_extra():
        __import__("skipnets.nowhere")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [("densenet112", "densenet121"), ("resnet81", "resnet18"), ("DenseNet121", "densenet121")],
)
def test_the_nearest_name_comes_first(wrong: str, named: str) -> None:
    known = ("densenet121", "densenet169", "resnet18")
    assert near_matches(wrong, known).startswith(f"; did you mean {named}")


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near_matches("alexnet-owt", ["vgg16"]) == ""
    assert near_matches("x", []) == ""


def test_words() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcdefgh") == "a, b, c, d, e and 3 more"
    assert listed("abcd", 3) == "a, b, c and 1 more"
    error = RuntimeError("  first\n\n second  line\nthird ")
    assert (one_line(error), one_line(error, 0), one_line(error, -1)) == (
        "first second line third",
        "first",
        "third",
    )
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(ValueError("x" * 1000)) == "x" * 199 + "…"
