"""The command line. Each command parses its arguments, calls one library function, and prints the result.

Results go to standard output, everything else to standard error. Exit status is 0 for success, 1 for success
with listed failures or a training that diverged, 2 for wrong input. A command's module is imported only when
the command is called.
"""

from __future__ import annotations

import ast
import atexit
import errno
import gc
import itertools
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import cyclopts
from cyclopts.help import DefaultFormatter

from skipnets.errors import MissingExtraError, UserError, near_matches, needs_extra
from skipnets.terminal import LogHandler, flowing, message_lines, tolerate
from skipnets.trust import trusting

__all__ = ["COMMANDS", "main", "make_app"]

COMMANDS = {
    "models": "List the models that can be trained.",
    "info": "Show the metadata of a model file.",
    "data": "Show what a dataset contains, before training on it.",
    "audit": "Look for what may be wrong with a dataset, and write a corrected manifest.",
    "shard": "Write a dataset as tar shards, for more images than fit as files.",
    "train": "Train a classifier on images in folders.",
    "tune": "Find good training settings by experiment.",
    "convert": "Make a model file of weights that others trained.",
    "evaluate": "Evaluate a classifier on labeled images.",
    "predict": "Classify images.",
    "summary": "Show a network's layers, parameters with their formulas, compute and memory.",
    "diagram": "Draw networks, with every dense connection and every shortcut.",
    "explain": "Show which parts of an image contribute to a class.",
    "search": "Find the images that are most similar to a query.",
    "reuse": "Plot feature reuse in a network's layers.",
    "ensemble": "Make one model of several, which averages their probabilities.",
    "calibrate": "Calibrate a classifier: its probabilities, prediction sets, and outliers.",
    "report": "Write a report on a run as one HTML file.",
    "compare": "Compare runs, and test whether they differ significantly.",
    "export": "Export a classifier to other runtimes, and verify the export.",
    "plan": "Show how the native engine runs a classifier.",
    "benchmark": "Benchmark a classifier in every runtime on this machine.",
    "serve": "Serve a classifier over HTTP, with a web page.",
}


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def make_app(command: str | None) -> cyclopts.App:
    """Create the command-line application.

    Args:
        command: The command that will run, which shows its full help; the others show one line, without
            being imported.
    """
    app = cyclopts.App(
        name="skipnets",
        help="Image classifiers with skip connections: from images in folders to a checked model file.\n\n"
        "Every command takes --trust package.module:Class, for a model file or run whose network is that "
        "one: it is imported and run. No file makes anything run by itself.",
        help_format="plaintext",
        help_formatter=_HelpFormatter(),
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # an interruption has a message
        default_parameter=cyclopts.Parameter(negative_bool=(), negative_iterable=()),
    )
    for name, line in COMMANDS.items():
        app.command(f"skipnets.cli.{name}:{name}", name=name, help=None if name == command else line)
    return app


class _HelpFormatter(DefaultFormatter):
    """Shows help without the line breaks of the docstrings: paragraphs are as wide as the terminal."""

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        text = getattr(description, "primary_renderable", None)
        if text is not None:
            text.plain = flowing(text.plain)
        super().render_description(console, options, description)

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
    if arguments is None:
        # What a process holds at its end is not worth collecting: PyTorch makes that more than a second.
        atexit.register(gc.freeze)
    words = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stderr is None:  # closed by whoever started this process
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    tolerate(sys.stdout)
    tolerate(sys.stderr)
    if sys.stdout is None:
        _print_error("standard output: is closed; results go there")
        return 2
    with _messages_shown():
        return _run(words, ends_process=arguments is None)


def _run(words: Sequence[str], *, ends_process: bool) -> int:
    """Run one command; returns the exit status."""
    try:
        _check_not_empty(words)
        words, trusted = _without_trust(words)
        with needs_extra(), _imports_unwrapped(), trusting(trusted):
            status = make_app(words[0] if words else None)(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        _print_error(_with_example(_parsing_error(error, words), words))
        return 2
    except MissingExtraError as error:
        _print_error(str(error))
        return 2
    except UserError as error:
        message = "; ".join(_as_typed(each, words) for each in _complaints(str(error)))
        _print_error(_with_example(message, words))
        return error.exit_status
    except KeyboardInterrupt as interruption:
        _print_error(str(interruption) or "interrupted")
        status = getattr(interruption, "exit_status", 130)
        if ends_process:
            _end_process(status)
        return status
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        _discard_output()
        return 1
    except OSError as error:
        if error.filename is not None:
            _print_error(f"{error.filename}: {error.strerror or error}")
            return 2
        if error.errno not in _NO_ROOM:
            raise
        _discard_output()
        _print_error(f"standard output: cannot be written ({error.strerror})")
        return 2
    return status if isinstance(status, int) else 0


def _check_not_empty(words: Sequence[str]) -> None:
    """Refuse empty values, of which a path would mean the current folder."""
    for index, word in enumerate(words):
        if word and not re.fullmatch(r"--[\w.-]+=", word):
            continue
        option = word or (words[index - 1] if index and words[index - 1].startswith("--") else "")
        name = option.removesuffix("=") or f"argument {index + 1}"
        raise UserError(f"{name} is empty, as a shell variable without a value makes it")


def _without_trust(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--trust IMPORT`, which is an option of every command, and the imports."""
    rest: list[str] = []
    trusted: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--":
            return [*rest, word, *remaining], trusted
        name, equals, value = word.partition("=")
        if name != "--trust":
            rest.append(word)
            continue
        value = value if equals else next(remaining, "")
        if not value:
            raise UserError("trust: must have a value, package.module:Class")
        trusted.append(value)
    return rest, trusted


@contextmanager
def _imports_unwrapped() -> Iterator[None]:
    """Re-raise the original error where cyclopts wraps a failed import of a command's module."""
    try:
        yield
    except ImportError as error:
        if isinstance(error.__cause__, ModuleNotFoundError | UserError):
            raise error.__cause__ from None
        raise


def _parsing_error(error: cyclopts.CycloptsError, words: Sequence[str]) -> str:
    """The parser's message in the form of the library's: "--lr=fast: must be a number"."""
    text = str(error).rstrip(".")
    name = error.argument.name if error.argument is not None else ""
    if isinstance(error, cyclopts.CoercionError) and error.token is not None:
        choices = re.search(r"Choose from: (.*)", text.replace(". Did you mean", "; did you mean"))
        kinds: dict[object, str] = {int: "must be a whole number", float: "must be a number"}
        right = (
            f"must be one of {choices[1]}".replace('"', "") if choices else kinds.get(error.target_type, text)
        )
        option = error.token.keyword or name
        return f"{option}={error.token.value}: {right}"
    if isinstance(error, cyclopts.MissingArgumentError):
        option = error.keyword or name
        count = re.search(r"requires (\d+) positional", text)
        if not any(word.partition("=")[0] == option for word in words):
            return f"{option} must be given"
        value = next((after for word, after in itertools.pairwise(words) if word == option), "")
        if re.match("-[^-]", value):
            return f"{option}: must have a value; one that begins with a hyphen is given as {option}={value}"
        return f"{option}: must have {f'{count[1]} values' if count else 'a value'}"
    if isinstance(error, cyclopts.RepeatArgumentError):
        return f"{error.token.keyword or name}={error.token.value}: must be given once"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        unused = " ".join(error.unused_tokens or ())
        return f"{unused}: too many values; skipnets {words[0]} --help shows what it takes"
    if isinstance(error, cyclopts.UnknownOptionError):
        option = error.token.keyword or error.token.value
        if words[0] in COMMANDS and option in _options("train"):
            return f"{option}: no such option of {words[0]}; skipnets train has it"
        near = re.search(r"Did you mean (.*)\?", text)
        return f"{option}: no such option{f'; did you mean {near[1]}?' if near else ''}"
    if isinstance(error, cyclopts.UnknownCommandError):
        return f"{words[0]}: no such command{near_matches(words[0], COMMANDS)} (skipnets --help lists all)"
    return text


def _options(command: str) -> set[str]:
    """The names of a command's options and values."""
    arguments = make_app(command)[command].assemble_argument_collection()
    return {name for argument in arguments for name in argument.names}


def _with_example(message: str, words: Sequence[str]) -> str:
    """Where something must be given, also how: the first example of the command's help."""
    if (
        not words
        or words[0] not in COMMANDS
        or not re.search(r"(^|; )\S+ must be given( \([^)]*\))?(;|$)", message)
    ):
        return message
    example = re.search(r"For example:\s+(\S.*)", make_app(words[0])[words[0]].help)
    return message if example is None else f"{message}, as in: {example[1]}"


def _complaints(message: str) -> list[str]:
    """The parts of an error that is about several options, of the form `option=value: must …`."""
    return re.split(r"; (?=[a-z]\w*(?:=[^;]*?)?: must )", message)


def _as_typed(message: str, words: Sequence[str]) -> str:
    """Name options and values in an error as they are typed: "--batch-size=0: must be at least 1"."""
    if not words or words[0] not in COMMANDS:
        return message
    names = _options(words[0])

    def typed(name: str) -> str | None:
        option = name.replace("_", "-")
        if f"--{option}" in names:
            return f"--{option}"
        if any(word.startswith(f"--model-options.{option}") for word in words):
            return f"--model-options.{option}"
        # One of several values of an argument is reported in the singular.
        return next((each for each in (name.upper(), f"{name.upper()}S") if each in names), None)

    message = _name_output_option(message, words)
    match = re.match(r"([a-z]\w*)(?:=(.*?))?:(?: |$)(.*)", message, re.DOTALL)
    if match is not None and (option := typed(match[1])):
        value, rest = match[2], re.sub(r"'([\w.-]+)'", r"\1", re.sub(r"\bNone\b", "none", match[3]))
        if value is None:
            start = f"{option} {rest}" if rest.startswith("must") else f"{option}: {rest}"
        else:
            start = f"{option}={_typed_value(value)}: {rest}"
        message = start
    message = _name_commands_of_hints(message, names)
    return re.sub(
        r"(?<![\w./-])([a-z]\w*)=(?!\.\.\.)", lambda found: f"{typed(found[1]) or found[1]}=", message
    )


def _name_output_option(message: str, words: Sequence[str]) -> str:
    """Begin a message on a path that cannot be written with the option that gave it."""
    match = re.fullmatch(r"(.+?) cannot be written: (.*)", message, re.DOTALL)
    if match is None:
        return message
    path = Path(match[1])
    options = [word.partition("=") for word in words]
    pairs = [(name, value) for name, equals, value in options if name.startswith("--") and equals]
    pairs += [(name, value) for name, value in itertools.pairwise(words) if name.startswith("--")]
    for name, value in pairs:
        if Path(value) == path or Path(value) in path.parents:
            inside = "" if Path(value) == path else f" ({path})"
            return f"{name}={value}: cannot be written: {match[2]}{inside}"
    return message


def _name_commands_of_hints(message: str, names: set[str]) -> str:
    """Say which commands have the options that a message on data recommends, if this one does not."""
    from skipnets.data.options import DataOptions

    options = {f"--{field.replace('_', '-')}" for field in DataOptions.__dataclass_fields__}
    if lacking := sorted(options.intersection(re.findall(r"(?<= )--[a-z-]+", message)) - names):
        return (
            f"{message} ({', '.join(lacking)}: of skipnets train, data, audit, evaluate, calibrate and reuse)"
        )
    return message


def _typed_value(text: str) -> str:
    """A value in Python's notation as it is typed: "'x'" → "x", "None" → "none", "[8, 0]" → "8 0"."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _end_process(status: int) -> NoReturn:
    """End at once: Python takes more than a second to clear away the modules that training needs."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _discard_output() -> None:
    """Let what is still buffered go nowhere, or Python would fail on it again as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> None:
    """Print a message on standard error, on one line where it is no terminal."""
    with suppress(OSError):  # nothing can be said where standard error is full or closed
        text = f"skipnets: {' '.join(message.split())}"
        sys.stderr.write(f"{message_lines(text, sys.stderr)}\n")
        sys.stderr.flush()


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Show the library's log messages (a re-initialized head, a skipped image) on standard error."""
    logger = logging.getLogger("skipnets")
    before = logger.handlers, logger.level
    logger.handlers = [LogHandler()]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers = before[0]
        logger.setLevel(before[1])
