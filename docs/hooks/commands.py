"""Write the help text of every command into the page that asks for it with `<!-- commands -->`."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from skipnets.cli import COMMANDS, make_app

_MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by one section a command."""
    if _MARK not in markdown:
        return markdown
    return markdown.replace(_MARK, "\n\n".join(map(_section, COMMANDS)))


def _section(name: str) -> str:
    page = io.StringIO()
    make_app(name).help_print([name], console=Console(file=page, width=84))
    text = "\n".join(line.rstrip() for line in page.getvalue().strip("\n").splitlines())
    return f"## {name}\n\n{COMMANDS[name]}\n\n```text\n{text}\n```"
