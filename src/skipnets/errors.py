"""Errors for wrong input, and helpers to word their messages."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_TRAIN = (
    "docstring_parser",
    "huggingface_hub",
    "matplotlib",
    "psutil",
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
    "report": (*_TRAIN, "captum", "cleanlab", "jinja2", "markupsafe"),
    "tune": (*_TRAIN, "captum", "cleanlab", "jinja2", "markupsafe", "optuna"),
    "heic": ("pillow_heif",),
    "keras": ("h5py",),
    "scale": ("fsspec", "pyarrow"),
    "ray": ("ray",),
    "medical": ("nibabel", "pydicom"),
    "science": ("tifffile",),
    "serve": ("fastapi", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
}
"""Extra → the modules that it installs, as in pyproject.toml."""


class UserError(ValueError):
    """Wrong input; the message is one line that names it and says what would be right.

    The command line prints the message without a traceback.

    Attributes:
        exit_status: Of the command.
    """

    exit_status = 2


class MissingExtraError(UserError):
    """Libraries that a feature needs are not installed.

    Attributes:
        library: The module that could not be imported; None where several are missing.
    """

    def __init__(self, message: str, library: str | None = None) -> None:
        super().__init__(message)
        self.library = library


def missing_extra(extra: str, library: str | None = None) -> MissingExtraError:
    """An error for missing libraries, with the command that installs them."""
    return MissingExtraError(f'this needs the extra "{extra}": {install_command(extra)}', library)


@contextmanager
def needs_extra(preferred: str | None = None) -> Iterator[None]:
    """Context manager that turns a failed import into an error naming the extra that installs the library.

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
            raise  # already names an extra
        if extras:
            raise missing_extra(preferred if preferred in extras else extras[0], library) from error
        if library == "onnxruntime":  # a core dependency, but it has no wheel for every platform
            raise MissingExtraError('this needs onnxruntime: pip install "onnxruntime"', library) from error
        raise


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Begin the message of a UserError with the option whose value is at fault."""
    try:
        yield
    except MissingExtraError:
        raise
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def install_command(extra: str) -> str:
    """The command that installs an extra from the package's own origin, a checkout or PyPI."""
    url, path, editable = _origin()
    if path is not None:
        return f'pip install {"--editable " if editable else ""}"{path}[{extra}]"'
    return f'pip install "skipnets[{extra}]{f" @ {url}" if url else ""}"'


def engine_command() -> str:
    """The command that installs the package skipnets-engine from the same origin, where it is a folder."""
    url, path, _ = _origin()
    if path is not None:
        return f'pip install "{path}/engine"'
    return f'pip install "skipnets-engine{f" @ {url}#subdirectory=engine" if url else ""}"'


def _origin() -> tuple[str, str | None, bool]:
    """Where this package was installed from: a repository's URL or "", a local path, whether editable."""
    # Imported here because these take time and only errors need them.
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
        return f"{origin['vcs_info']['vcs']}+{url}", None, False
    if url.startswith("file:"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        return "", path, bool(origin.get("dir_info", {}).get("editable"))
    return "", None, False


def check_at_least_1(**options: int | None) -> None:
    """Check counts; None stands for a default.

    Raises:
        UserError: If one is no whole number or below 1; it names the option.
    """
    for name, value in options.items():
        if value is None:
            continue
        if not hasattr(value, "__index__"):
            raise UserError(f"{name}={value!r}: must be a whole number, at least 1")
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")


def check_path(name: str, value: object, or_else: str = "") -> None:
    """Check that an argument is a path.

    Args:
        name: The argument's name.
        value: Its value.
        or_else: What it may be as well, for the message, such as " or a Classifier".

    Raises:
        UserError: If it is something else.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}: must be a path{or_else}, not {type(value).__name__}")


def near_matches(wrong: str, names: Iterable[str]) -> str:
    """Suggestions to append to a message: "; did you mean a, b?", or "" if no name is close."""
    near = difflib.get_close_matches(wrong, list(names), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def class_hint(wrong: str, classes: Sequence[str]) -> str:
    """What a class's name must be, for a message about one that the classifier does not have."""
    return f"must be a class of the classifier: {listed(classes, 8)}{near_matches(wrong, classes)}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Join names for a message: "a, b, c", or with more than `most`, "a, b, c, d, e and 3 more"."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: BaseException, line: int | None = None) -> str:
    """Shorten the message of another library's error to one line.

    Args:
        error: The error; an empty message becomes its type's name.
        line: Index of the line to keep; None joins all of them.
    """
    most = 200  # characters; some messages span pages
    lines = [" ".join(part.split()) for part in str(error).splitlines() if part.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines) if line is None else lines[line]
    return text if len(text) <= most else f"{text[: most - 1]}…"
