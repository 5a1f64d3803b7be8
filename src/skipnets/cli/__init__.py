"""The command line. Each command parses its arguments, calls one library function, and prints the result.

Results go to standard output, everything else to standard error. Exit status is 0 for success, 1 for success
with listed failures, 2 for wrong input. A command's module is imported only when the command is called.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cyclopts
from cyclopts.help import DefaultFormatter

from skipnets.errors import UserError, needs_extra

__all__ = ["COMMANDS", "main", "make_app"]

COMMANDS = {
    "models": "List the models that can be trained.",
    "info": "Show the metadata of a model file.",
    "data": "Show what a dataset contains, before training on it.",
    "train": "Train a classifier on images in folders.",
    "evaluate": "Evaluate a classifier on labeled images.",
    "predict": "Classify images.",
    "summary": "Show a network's layers, parameters with their formulas, compute and memory.",
    "diagram": "Draw networks, with every dense connection and every shortcut.",
    "explain": "Show which parts of an image contribute to a class.",
    "reuse": "Plot feature reuse in a network's layers.",
    "calibrate": "Calibrate a classifier's probabilities by temperature scaling.",
    "report": "Write a report on a run as one HTML file.",
    "compare": "Compare runs, and test whether they differ significantly.",
    "export": "Export a classifier to other runtimes, and verify the export.",
    "plan": "Show how the native engine runs a classifier.",
    "benchmark": "Benchmark a classifier in every runtime on this machine.",
    "serve": "Serve a classifier over HTTP, with a web page.",
}


def make_app(command: str | None) -> cyclopts.App:
    """Create the command-line application.

    Args:
        command: The command that will run, which shows its full help; the others show one line, without
            being imported.
    """
    app = cyclopts.App(
        name="skipnets",
        help="Image classifiers with skip connections: from images in folders to a checked model file.",
        help_format="plaintext",
        help_formatter=_HelpFormatter(),
        version=_version,
        result_action="return_value",
        default_parameter=cyclopts.Parameter(negative_bool=(), negative_iterable=()),
    )
    for name, line in COMMANDS.items():
        app.command(f"skipnets.cli.{name}:{name}", name=name, help=None if name == command else line)
    return app


class _HelpFormatter(DefaultFormatter):
    """Shows the help of options without the line breaks that it has in the docstrings."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        for entry in panel.entries:
            text = entry.description.primary_renderable
            text.plain = " ".join(text.plain.split())
        super().__call__(console, options, panel)


def _version() -> str:
    from skipnets.version import __version__

    return __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments after `skipnets`; None reads them from the command line.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    _set_up_logging()
    try:
        with needs_extra(), _imports_unwrapped():
            status = make_app(words[0] if words else None)(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        _print_error(str(error))
        return 2
    except UserError as error:
        _print_error(_as_typed(str(error), words[0] if words else None))
        return 2
    except KeyboardInterrupt as interruption:
        _print_error(str(interruption) or "interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


@contextmanager
def _imports_unwrapped() -> Iterator[None]:
    """Re-raise the original error where cyclopts wraps a failed import of a command's module."""
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__, ModuleNotFoundError | UserError):
            raise error.__cause__ from None
        raise


def _as_typed(message: str, command: str | None) -> str:
    """Name an option in an error as it is typed: "--batch-size=0: must be at least 1"."""
    match = re.match(r"([a-z]\w*)(=|: )", message)
    if match is None or command not in COMMANDS:
        return message
    option = f"--{match[1].replace('_', '-')}"
    arguments = make_app(command)[command].assemble_argument_collection()
    if option not in {name for argument in arguments for name in argument.names}:
        return message
    rest = message[match.end() :]
    if match[2] == "=":
        return f"{option}={rest}"
    return f"{option} {rest}" if rest.startswith("must") else f"{option}: {rest}"


def _print_error(message: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(f"skipnets: {' '.join(message.split())}\n")


def _set_up_logging() -> None:
    """Show the library's log messages (a re-initialized head, a skipped image) on standard error."""
    logger = logging.getLogger("skipnets")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
