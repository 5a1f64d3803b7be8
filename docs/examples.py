"""Write what is generated into the pages.

    python docs/examples.py              # every page
    python docs/examples.py docs/guide/dense-layer.md

Code: the blocks of a page run in order, as one program, in an empty folder. ```python is executed; of ```sh
the lines that begin with `skipnets` are. What a block prints stands in the ```text block that follows it.
With `title="for example"` its numbers may differ from machine to machine, so only the rest is compared.

Files: the block after `<!-- include FILE -->` shows that file and is not run. `<!-- include FILE:PART -->`
takes what lies between `[start:PART]` and `[end:PART]`.

Commands: below `<!-- commands -->` stands the reference of the commands.

The tests hold every page to this (tests/docs/test_pages.py).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for `commands`

PAGES = sorted(path for path in Path(__file__).parent.rglob("*.md") if path.name != "results.md")

_ROOT = Path(__file__).parents[1]
_INCLUDED = re.compile(
    r"^(?P<start><!-- include (?P<file>[^\s:]+)(?::(?P<part>[\w-]+))? -->\n+```\w+\n).*?^```$",
    re.MULTILINE | re.DOTALL,
)
_COMMANDS = "<!-- commands -->\n"
_BLOCK = re.compile(
    r"^```(?P<language>python|sh)\n(?P<code>.*?)^```\n"
    r"(?:\n*^```text(?P<title> title=\"for example\")?\n.*?^```\n)?",
    re.MULTILINE | re.DOTALL,
)


def rewritten(page: str) -> str:
    """The page's text with what its blocks print now."""
    names: dict[str, Any] = {"__name__": "__main__"}
    page = _INCLUDED.sub(_with_file, page)
    if _COMMANDS in page:
        from commands import reference

        page = page[: page.index(_COMMANDS)] + f"{_COMMANDS}\n{reference()}"

    def run(block: re.Match[str]) -> str:
        code = block["code"]
        if page[: block.start()].rstrip().endswith("-->"):
            return block[0]
        line = page.count("\n", 0, block.start("code"))
        printed = (
            _run_python("\n" * line + code, names) if block["language"] == "python" else _run_shell(code)
        )
        text = f"```{block['language']}\n{code}```\n"
        if not printed:
            return text
        return f"{text}\n```text{block['title'] or ''}\n{printed}```\n"

    with _empty_folder():
        return _BLOCK.sub(run, page)


def _with_file(block: re.Match[str]) -> str:
    text = (_ROOT / block["file"]).read_text(encoding="utf-8")
    if part := block["part"]:
        text = re.split(rf"^.*\[(?:start|end):{part}\].*\n", text, flags=re.MULTILINE)[1]
    return f"{block['start']}{text.strip()}\n```"


def comparable(page: str) -> str:
    """The text without what is for example in printed text: numbers, words that depend on them, spacing."""

    def masked(block: re.Match[str]) -> str:
        text = re.sub(r"[-+]?\d[\d,.]*(e-?\d+)?", "0", block[0]).replace("–", "0")
        return " ".join(re.sub(r"\b(better|worse|within noise)\b", "0", text).split())

    return re.sub(r'^```text title="for example"\n.*?^```\n', masked, page, flags=re.MULTILINE | re.DOTALL)


def _run_python(code: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<page>", "exec"), names)  # noqa: S102 (the project's own pages)
    return printed.getvalue()


def _run_shell(code: str) -> str:
    from skipnets.cli import main

    printed = io.StringIO()
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "skipnets":
            with contextlib.redirect_stdout(printed):
                status = main(words[1:])
            if status:
                raise RuntimeError(f"{line}: ended with status {status}")
    return (
        "\n".join(text.rstrip() for text in printed.getvalue().splitlines()) + "\n" if printed.tell() else ""
    )


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        old = path.read_text(encoding="utf-8")
        new = rewritten(old)
        if comparable(new) != comparable(old):
            path.write_text(new, encoding="utf-8")
            sys.stdout.write(f"rewritten: {path}\n")
