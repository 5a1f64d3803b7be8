"""Errors that a person can cause and fix, and the words that they are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_TRAIN = (
    "docstring_parser",
    "huggingface_hub",
    "matplotlib",
    "pyarrow",
    "pydantic",
    "pytorch_lightning",
    "scipy",
    "simplejpeg",
    "sklearn",
    "tensorboard",
    "torch",
    "torchmetrics",
    "torchvision",
    "typing_extensions",
    "yaml",
)
EXTRAS = {
    "train": _TRAIN,
    "deploy": ("nncf", "onnx", "onnxscript", "openvino"),
    "explain": (*_TRAIN, "captum"),
    "report": (*_TRAIN, "captum", "jinja2", "markupsafe"),
    "heic": ("pillow_heif",),
    "science": ("tifffile",),
    "serve": ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
}
"""Extra → the modules that it installs, as in pyproject.toml."""


class UserError(ValueError):
    """Wrong input: one line that names it and says what would be right.

    The command line prints the message without a traceback and exits with status 2.
    """


class MissingExtraError(UserError):
    """Libraries that a feature needs are not installed.

    Attributes:
        library: The module that could not be imported; None where several are missing.
    """

    def __init__(self, message: str, library: str | None = None) -> None:
        super().__init__(message)
        self.library = library


def missing_extra(extra: str, library: str | None = None) -> MissingExtraError:
    """The error for a feature whose libraries are not installed, with the command that installs them."""
    return MissingExtraError(f'this needs the extra "{extra}": {install_command(extra)}', library)


@contextmanager
def needs_extra(preferred: str | None = None) -> Iterator[None]:
    """Turn the failed import of an optional library into the line that says which extra installs it.

    Args:
        preferred: The extra to name if it is one of those that install the library.
    """
    try:
        yield
    except (ModuleNotFoundError, MissingExtraError) as error:
        name = error.library if isinstance(error, MissingExtraError) else error.name
        library = (name or "").partition(".")[0]
        extras = [extra for extra, modules in EXTRAS.items() if library in modules]
        if isinstance(error, MissingExtraError) and preferred not in extras:
            raise  # it names one already
        if extras:
            raise missing_extra(preferred if preferred in extras else extras[0], library) from error
        if library == "onnxruntime":  # a core dependency, but it has no wheel for every platform
            raise MissingExtraError('this needs onnxruntime: pip install "onnxruntime"', library) from error
        raise


def install_command(extra: str) -> str:
    """The command that installs an extra from where this package itself came from, a checkout or PyPI."""
    # Here, because these take time to import and only errors need them.
    import importlib.metadata
    import json
    import urllib.parse
    import urllib.request

    try:
        origin = json.loads(importlib.metadata.distribution("skipnets").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = origin.get("url", "")
    if "vcs_info" in origin:
        return f'pip install "skipnets[{extra}] @ {origin["vcs_info"]["vcs"]}+{url}"'
    if url.startswith("file:"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
        return f'pip install {editable}"{path}[{extra}]"'
    return f'pip install "skipnets[{extra}]"'


def near_matches(wrong: str, known: Iterable[str]) -> str:
    """Words to append: "; did you mean a, b?", or "" where no known name is near the wrong one."""
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message: "a, b, c", and with more than `most` "a, b, c, d, e and 3 more"."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: BaseException, line: int | None = None) -> str:
    """The message of another library's error in one line.

    Args:
        error: Its type's name stands for an empty message.
        line: Which line of the message, as an index; None joins all of them.
    """
    most = 200  # characters; some messages span pages
    lines = [" ".join(part.split()) for part in str(error).splitlines() if part.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines) if line is None else lines[line]
    return text if len(text) <= most else f"{text[: most - 1]}…"
