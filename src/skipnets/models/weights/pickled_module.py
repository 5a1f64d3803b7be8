"""Read pickled objects as plain data: classes become inert ones of the same name, and nothing is called.

`torch.load(weights_only=True)` refuses a file that holds anything besides tensors and plain containers, a
whole pickled module for example. Here such a file is read with an unpickler that finds tensors and ordered
dictionaries, and for every other global a class whose instances only keep what the file says of them. So no
code of the file or of another library runs.
"""

from __future__ import annotations

import collections
import io
import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Inert", "is_archive", "module_tensors", "read_inert"]


class Inert:
    """Stands for an instance of a class of another library: it has the instance's fields and no methods."""

    dump_patches = False  # what torch.load asks modules in its old format

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Take any arguments, and drop them."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> Inert:
        """Stand for what a method or a partial function would return."""
        return self

    def __setstate__(self, state: object) -> None:
        """Keep the fields, if that is what the state holds. Called for the class itself, it fails."""
        if isinstance(state, dict):
            vars(self).update(state)

    def __setitem__(self, key: object, value: object) -> None:
        """Drop an item of what was a dictionary."""

    def append(self, value: object) -> None:
        """Drop an item of what was a list."""

    def extend(self, values: object) -> None:
        """Drop items of what was a list."""


class _TensorFactory:
    """A tensor from the arguments of `torch._utils._rebuild_tensor`, in any of its versions."""

    __slots__ = ()

    def __call__(
        self, storage: torch.TypedStorage, offset: int, size: Any, stride: Any, *_: object
    ) -> Tensor:
        tensor = torch.empty(0, dtype=storage.dtype)
        return tensor.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


class _ParameterFactory:
    """The tensor of a parameter."""

    __slots__ = ()

    def __call__(self, data: object, *_: object) -> object:
        return data


_FOUND: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _TensorFactory(),
    ("torch._utils", "_rebuild_tensor_v2"): _TensorFactory(),
    ("torch._utils", "_rebuild_parameter"): _ParameterFactory(),
    ("torch._utils", "_rebuild_parameter_with_state"): _ParameterFactory(),
}


class _Unpickler(pickle._Unpickler):
    """The one in Python: that in C makes a list as long as the highest number that a file gives an object."""

    def find_class(self, module: str, name: str) -> Any:
        """Never import anything."""
        found = _FOUND.get((module, name))
        return type(name, (Inert,), {}) if found is None else found


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE = types.SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_load)


def is_archive(path: Path) -> bool:
    """Whether `torch.load` reads a file as a zip archive, as `torch.save` writes since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_inert(path: Path) -> object:
    """Read a file that `torch.save` wrote, with everything but tensors and plain values made inert.

    Raises:
        Exception: Of any kind, for a file that is damaged or of another format.
    """
    file = io.BytesIO(path.read_bytes())  # without a descriptor, torch.load tries no tar archives
    # Asked of torch's own reader: Python's does not always see the same archive in the same bytes.
    if is_archive(path) and "constants.pkl" in torch._C.PyTorchFileReader(file).get_all_records():
        raise pickle.UnpicklingError("is a TorchScript archive")  # torch.load would run it
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on sources of modules, which differ of course
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_PICKLE)


def module_tensors(module: Inert) -> dict[str, Tensor]:
    """The state dict of an inert `torch.nn.Module`."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def collect(module: Inert, prefix: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        fields = vars(module)
        for kind in ("_parameters", "_buffers"):
            for name, value in fields.get(kind, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{prefix}{name}"] = value
        for name, child in fields.get("_modules", {}).items():
            if isinstance(child, Inert):
                collect(child, f"{prefix}{name}.")

    collect(module, "")
    return tensors
