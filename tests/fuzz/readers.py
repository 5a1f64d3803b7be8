"""The readers that are fuzzed: each takes the bytes of a file, and may raise nothing but a UserError."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from skipnets.classifier import describe, load
from skipnets.data.decoding import ImageDecodeError, open_image, read_header
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import find_dataset
from skipnets.data.splits import read_split_rows
from skipnets.description import Description, check_export
from skipnets.errors import UserError
from skipnets.run_folder import check_splits, read_evaluation
from skipnets.runtimes import pt2 as _pt2  # noqa: F401 - PyTorch takes seconds to import
from skipnets.runtimes.model_file import parse_metadata, read_model_file
from skipnets.training.config import read_config

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def safetensors(data: bytes) -> None:
    """A model file: its header, its metadata, its tensors."""
    file = read_model_file(_file("m.safetensors", data))
    Description.from_metadata(file.path, file.metadata)
    file.tensors()


def metadata(data: bytes) -> None:
    """The metadata of a model file or an export, in whichever format."""
    values = parse_metadata(Path("m.onnx"), data.decode("utf-8", "surrogateescape"))
    json.dumps(Description.from_metadata(Path("m.onnx"), values).to_dict())
    check_export(Path("m.onnx"), values)


def pt2(data: bytes) -> None:
    """An exported program, read as data and run."""
    path = _file("m.pt2", data)
    describe(path)
    load(path, device="cpu")


def preprocessing(data: bytes) -> None:
    """Preprocessing from a JSON object."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        Preprocessing.from_dict(values).to_dict()


def run_yaml(data: bytes) -> None:
    """A run's configuration."""
    read_config(_file("run.yaml", data))


def splits_csv(data: bytes) -> None:
    """A run's splits."""
    read_split_rows(_file("splits.csv", data))


def environment_json(data: bytes) -> None:
    """What a run says of its files."""
    _file("splits.csv", b"path,label,split\n")
    _file("environment.json", data)
    check_splits(_FOLDER)


def evaluation_json(data: bytes) -> None:
    """A run's metrics."""
    _file("evaluation.json", data)
    read_evaluation(_FOLDER)


def manifest_csv(data: bytes) -> None:
    """A table of images as CSV."""
    find_dataset(_file("m.csv", data))


def manifest_jsonl(data: bytes) -> None:
    """A table of images as JSON lines."""
    find_dataset(_file("m.jsonl", data))


def manifest_txt(data: bytes) -> None:
    """A list of images."""
    find_dataset(_file("m.txt", data))


def image(data: bytes) -> None:
    """An image, of at most 2¹⁶ pixels, so that a run spends its time on files and not on pixels."""
    read_header(data)
    open_image(data, 3, max_pixels=1 << 16)


READERS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        *(safetensors, metadata, pt2, preprocessing, run_yaml, splits_csv, environment_json),
        *(evaluation_json, manifest_csv, manifest_jsonl, manifest_txt, image),
    )
}


def read(name: str, data: bytes) -> None:
    """Read bytes as a kind of file; what is raised but for wrong input is a finding."""
    try:
        READERS[name](data)
    except (UserError, ImageDecodeError) as error:
        message = str(error)
        if "\n" in message:
            raise AssertionError(f"more than one line: {message!r}") from error
    except OSError as error:
        # A name of a file in the input may be too long for the system, which the caller reports.
        if error.filename is None or os.fspath(_FOLDER) in str(error.filename):
            raise
