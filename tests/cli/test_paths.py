"""Words of the command line that stand for images."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tests.helpers.commands import write_image

from skipnets.cli.paths import chosen_pages, expand, expand_all
from skipnets.data.decoding import MAX_PIXELS, Page
from skipnets.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "deep/er/c.png", "[1].png"):
        write_image(tmp_path / name, 10)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("a.png", ["a.png"]),
        ("notes.txt", ["notes.txt"]),  # what is named is taken; reading it tells what is wrong
        (".", ["[1].png", "a.png", "b.png", "deep/er/c.png"]),
        ("deep", ["deep/er/c.png"]),
        ("[ab].png", ["a.png", "b.png"]),
        ("[1].png", ["[1].png"]),  # a file of that name goes before the pattern
        ("**/c.png", ["deep/er/c.png"]),
        ("d*", ["deep/er/c.png"]),
    ],
)
def test_what_a_word_stands_for(
    word: str, names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert [Path(path) for path in expand(word)] == [Path(name) for name in names]
    assert [Path(path) for path in expand(str(folder / word))] == [folder / name for name in names]


def test_a_word_like_an_option_is_no_missing_file(folder: Path) -> None:
    (folder / "--b.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(UserError, match=r"^--threshold: no such option, and no such file"):
        expand_all([str(folder / "a.png"), "--threshold", "0.5"])
    assert expand_all([str(folder / "--b.png"), "none.png"]) == [str(folder / "--b.png"), "none.png"]


def test_standard_input_is_taken_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a.png\n\n with blanks .png \r\nno/such.png"))
    assert expand("-") == ["a.png", " with blanks .png ", "no/such.png"]
    with pytest.raises(UserError, match="standard input holds no paths"):
        expand("-")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("empty", "empty holds no images"),
        ("*.jpg", r"no file matches \*\.jpg"),
        ("no.jpg", r"no\.jpg does not exist"),
    ],
)
def test_a_word_that_stands_for_nothing(
    word: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        expand(word)


def test_pages_and_limits_are_chosen_for_every_file() -> None:
    assert chosen_pages(["a.tif", "b"], page=None, max_pixels=None) == ["a.tif", "b"]
    assert chosen_pages(["a.tif"], page=3, max_pixels=None) == [Page(Path("a.tif"), 2, MAX_PIXELS)]
    assert chosen_pages(["a.tif"], page=None, max_pixels=7) == [Page(Path("a.tif"), None, 7)]
    for options in ({"page": 0, "max_pixels": None}, {"page": None, "max_pixels": 0}):
        with pytest.raises(UserError, match="=0: must be at least 1"):
            chosen_pages(["a.tif"], **options)
