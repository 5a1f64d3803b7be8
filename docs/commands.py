"""The reference of the commands: an entry with an anchor for each command and each option, from their help.

`python docs/examples.py` writes it into docs/reference/commands.md.
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
from cyclopts import Argument

from skipnets.cli import COMMANDS, make_app

_TYPES = {int: "integer", float: "number", str: "text", Path: "path"}


def reference() -> str:
    """A table of the commands, then a section for each."""
    rows = "\n".join(f"| [`{name}`](#{name}) | {line} |" for name, line in COMMANDS.items())
    sections = "\n".join(map(_section, COMMANDS))
    return f"| command | what it does |\n|---|---|\n{rows}\n\n{sections}"


def _section(name: str) -> str:
    app = make_app(name)
    command = app[name]
    help_text = docstring_parser.parse(command.help)
    arguments = command.assemble_argument_collection(
        default_parameter=app.default_parameter, parse_docstring=True
    )
    shown = [argument for argument in arguments if argument.show]
    places = [argument for argument in shown if argument.index is not None]
    usage = " ".join(
        [f"skipnets {name}"]
        + [argument.name if argument.required else f"[{argument.name}]" for argument in places]
        + (["[OPTIONS]"] if len(shown) > len(places) else [])
    )
    text = [
        f"## {name}",
        _escaped(help_text.short_description or ""),
        *_paragraphs(help_text.long_description or ""),
    ]
    entries = [_entry(name, argument) for argument in shown]
    return "\n\n".join([*text, f"```console\n$ {usage}\n```", "\n".join(entries)]) + "\n"


def _paragraphs(text: str) -> list[str]:
    """The description's paragraphs; indented ones are commands."""
    found = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith(" "):
            commands = textwrap.dedent(paragraph).splitlines()
            found.append("\n".join(["```console", *(f"$ {line}" for line in commands), "```"]))
        else:
            found.append(_escaped(" ".join(paragraph.split())))
    return [paragraph for paragraph in found if paragraph]


def _entry(command: str, argument: Argument) -> str:
    word = argument.name.removeprefix("--").lower()
    names = ", ".join(f"`{name}`" for name in argument.names)
    described = _escaped(" ".join((argument.parameter.help or "").split()))
    kind = _kind(argument.hint)
    default = argument.field_info.default
    if default is not False and default not in (None, inspect.Parameter.empty, "", ()):
        kind += f", default `{default}`"
    if argument.required:
        kind += ", required"
    return f'- <a id="{command}-{word}"></a>{names} *({kind})*: {described}'


def _escaped(text: str) -> str:
    """A text as Markdown shows it; what stands in backticks is code already."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(each) for each in inner if each is not type(None)))
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin in (list, tuple):
        return f"one or more: {_kind(inner[0])}" if origin is list or Ellipsis in inner else "several values"
    if origin is not None and not isinstance(origin, type):  # Annotated
        return _kind(inner[0])
    if hint is bool:
        return "switch"
    return "name and value" if origin is dict else _TYPES.get(hint, "value")
