"""What the pages' code prints is what stands in the pages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from skipnets.cli import COMMANDS, make_app

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load_examples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples", DOCS / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = load_examples()
GENERATED = ("```python", "```sh", "<!-- include", "<!-- commands")
PAGES = [path for path in examples.PAGES if any(mark in path.read_text() for mark in GENERATED)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_code_prints_what_the_page_shows(page: Path) -> None:
    shown = page.read_text(encoding="utf-8")
    assert examples.comparable(examples.rewritten(shown)) == examples.comparable(shown)


def test_a_wrong_output_is_found_and_a_number_given_for_example_is_not_compared() -> None:
    page = '```python\nprint("three:", 1 + 2, "better")\n```\n\n```text{}\n{}\n```\n'
    for title, wrong, same in (
        ("", "three: 4 better", False),
        (' title="for example"', "three: 4 better", True),
        (' title="for example"', "three: 4 within noise", True),
        (' title="for example"', "four: 4 better", False),
    ):
        shown = page.format(title, wrong)
        again = examples.rewritten(shown)
        assert "three: 3" in again
        assert (examples.comparable(again) == examples.comparable(shown)) is same


def test_code_that_fails_is_found() -> None:
    with pytest.raises(ZeroDivisionError):
        examples.rewritten("```python\n1 / 0\n```\n")
    with pytest.raises(RuntimeError, match="status 2"):
        examples.rewritten("```sh\nskipnets info nowhere\n```\n")


def test_the_page_of_mistakes_shows_every_marked_part_of_its_tests() -> None:
    tests = Path(__file__).with_name("test_mistakes.py").read_text(encoding="utf-8")
    page = (DOCS / "guide" / "mistakes.md").read_text(encoding="utf-8")
    marked = re.findall(r"\[start:([\w-]+)\]", tests)
    assert marked
    assert (
        re.findall(r"^<!-- include tests/docs/test_mistakes.py:([\w-]+) -->$", page, re.MULTILINE) == marked
    )
    start = page.index(
        "```python\nclass ForgottenLayers(nn.Module):"
    )  # the code itself, for readers of the repository
    assert "self.layers = [  # a plain list" in page[start : start + 300]


def test_every_command_and_option_has_an_entry_with_an_anchor() -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    anchors = re.findall(r'<a id="([\w-]+)"></a>', page)
    assert len(anchors) == len(set(anchors)) > 100
    for name in COMMANDS:
        assert f"\n## {name}\n" in page
        options = {
            word.removeprefix("--").lower()
            for argument in make_app(name)[name].assemble_argument_collection()
            if argument.show
            for word in argument.names[:1]
        }
        assert {anchor for anchor in anchors if anchor in {f"{name}-{option}" for option in options}} == {
            f"{name}-{option}" for option in options
        }
    assert not re.search(r"\)\*: *$", page, re.MULTILINE), "an option without help"


def test_commands_are_not_clipped_on_a_screen_of_1280_pixels() -> None:
    """A block of code is 132 characters wide there; readers copy commands, which must be seen whole."""
    for path in sorted(DOCS.rglob("*.md")):
        blocks = re.finditer(
            r"^```(?:sh|python)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.DOTALL
        )
        long = [line for block in blocks for line in block[1].splitlines() if len(line) > 125]
        assert not long, f"{path}: {long}"
