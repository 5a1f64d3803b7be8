"""The command line: it parses, calls one function of the library, and prints what that gives.

Results go to standard output, everything else to standard error. Exit status 0 is done, 1 done with failures
that are listed, 2 wrong input. A command's module is imported when the command is called, not before.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cyclopts

from skipnets.errors import UserError, needs_extra

__all__ = ["COMMANDS", "main", "make_app"]

COMMANDS = {
    "models": "List the models that can be trained.",
    "info": "Tell everything that a model file knows.",
    "data": "Show what a dataset holds, before training on it.",
    "train": "Train a classifier on images in folders.",
    "evaluate": "Measure a classifier on labeled images.",
    "predict": "Tell what images show.",
    "summary": "Show a network's layers, parameters with their formulas, compute and memory.",
    "diagram": "Draw networks, with every dense connection and every shortcut.",
    "explain": "Show what in an image speaks for a class.",
    "reuse": "Draw which features a network's layers reuse.",
    "calibrate": "Calibrate a classifier's probabilities by a temperature.",
    "report": "Show where a run's classifier fails, as one HTML file.",
    "compare": "Tell whether runs differ by more than noise.",
    "export": "Write a classifier as a checked graph for other runtimes.",
    "plan": "Show how the native engine runs a classifier, step by step.",
    "benchmark": "Time a classifier in every runtime on this machine.",
    "serve": "Answer over HTTP what images show, with a page for people.",
}


def make_app(called: str | None) -> cyclopts.App:
    """The program, ready to run.

    Args:
        called: The command that will be run. It tells its own, longer help; of the others one line is shown,
            without importing them.
    """
    app = cyclopts.App(
        name="skipnets",
        help="Image classifiers with skip connections: from images in folders to a checked model file.",
        help_format="plaintext",
        version=_version,
        result_action="return_value",
    )
    for name, line in COMMANDS.items():
        app.command(f"skipnets.cli.{name}:{name}", name=name, help=None if name == called else line)
    return app


def _version() -> str:
    from skipnets.version import __version__

    return __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `skipnets`; None takes them from the command line.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    _show_log()
    try:
        with needs_extra(), _imports_unwrapped():
            status = make_app(words[0] if words else None)(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        _say(str(error))
        return 2
    except UserError as error:
        _say(_as_typed(str(error), words[0] if words else None))
        return 2
    except KeyboardInterrupt as interruption:
        _say(str(interruption) or "interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


@contextmanager
def _imports_unwrapped() -> Iterator[None]:
    """Where a command's own module cannot be imported, cyclopts wraps the reason: take it out again."""
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__, ModuleNotFoundError | UserError):
            raise error.__cause__ from None
        raise


def _as_typed(message: str, command: str | None) -> str:
    """A library's error with the option as it is typed: "--batch-size=0: must be at least 1"."""
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


def _say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"skipnets: {' '.join(message.split())}\n")


def _show_log() -> None:
    """What the library has to say (a head made anew, an image skipped) goes to standard error."""
    logger = logging.getLogger("skipnets")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
