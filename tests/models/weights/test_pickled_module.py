"""Pickled modules are read as data, and whatever else a pickle asks for does nothing."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from skipnets.models.weights import pickled_module
from skipnets.models.weights.pickled_module import Inert, module_tensors, read_inert

zipped = pytest.mark.parametrize("zipped", [True, False])


def save(value: object, path: Path, zipped: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@zipped
def test_a_whole_module_gives_its_state_dict(zipped: bool, tmp_path: Path) -> None:
    """With shared storages, strides, parameters, buffers, and types of 16 bits."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2).half()))
    module[0].weight.data = torch.randn(3, 4, 3, 3).transpose(0, 1)
    module[1].running_var = torch.arange(8.0)[::2]
    module.register_buffer("none", None)
    found = read_inert(save(module, tmp_path / "m.pt", zipped))
    assert isinstance(found, Inert)
    tensors = module_tensors(found)
    assert list(tensors) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].dtype == tensor.dtype


class Payload:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


@zipped
def test_nothing_that_a_pickle_names_is_called(zipped: bool, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    value = {
        "path": Payload(Path.touch, trap),
        "code": Payload(eval, f"open({str(trap)!r}, 'w')"),
        "partial": functools.partial(Path.touch, trap),
        "nested": Payload(getattr, Payload(__import__, "os"), "system"),
        "tensor": torch.ones(2),
        "text": "kept",
    }
    found = read_inert(save(value, tmp_path / "m.pt", zipped))
    assert not trap.exists()
    assert isinstance(found, dict)
    assert [name for name, each in found.items() if isinstance(each, Inert)] == [
        "path",
        "code",
        "partial",
        "nested",
    ]
    assert torch.equal(found["tensor"], torch.ones(2))
    assert found["text"] == "kept"
    pickle.loads(pickle.dumps(value["path"]))
    assert trap.exists()  # the trap works


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that exists where the file was written, and one that would run on import."""
    module = types.ModuleType("elsewhere")
    module.Net = type("Net", (nn.Linear,), {"__module__": "elsewhere"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    path = save(module.Net(2, 2), tmp_path / "m.pt", True)
    (tmp_path / "elsewhere.py").write_text("raise RuntimeError")
    monkeypatch.delitem(sys.modules, "elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = read_inert(path)
    assert isinstance(found, Inert)
    assert type(found).__name__ == "Net"
    assert list(module_tensors(found)) == ["weight", "bias"]


@pytest.mark.parametrize(
    "name", ["elsewhere\nNet", "collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2"]
)
@pytest.mark.parametrize("state", ["fields", "slots"])
def test_a_file_cannot_change_what_it_names(state: str, name: str) -> None:
    """`BUILD` sets attributes of whatever precedes it."""
    values = b"}X\x01\x00\x00\x00xK\x01s"
    build = b"c" + name.encode() + b"\n" + (values if state == "fields" else b"N" + values + b"\x86") + b"b."
    with pytest.raises((TypeError, AttributeError)):
        torch.load(io.BytesIO(legacy(build)), weights_only=False, pickle_module=pickled_module._PICKLE)


def legacy(content: bytes) -> bytes:
    """A file in torch's format from before 1.6, with a pickle of one's own in place of the object."""
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}):
        pickle.dump(value, buffer, protocol=2)
    return buffer.getvalue() + pickle.PROTO + b"\x02" + content


def test_torchscript_is_not_run(tmp_path: Path) -> None:
    """`torch.load` hands such archives to `torch.jit.load`, whatever the unpickler."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/version", b"3")
    with pytest.raises(pickle.UnpicklingError, match="TorchScript"):
        read_inert(tmp_path / "m.pt")


def test_torchscript_is_not_run_where_only_torch_sees_an_archive(tmp_path: Path) -> None:
    """Python's zipfile takes the last signature of an archive's end for it, torch the last that is whole."""
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/version", b"3")
        archive.comment = b"PK\x05\x06.."
    assert not zipfile.is_zipfile(path)
    with pytest.raises(pickle.UnpicklingError, match="TorchScript"):
        read_inert(path)


def test_numbers_of_objects_take_no_memory(tmp_path: Path) -> None:
    """C's unpickler makes a list as long as the highest, which may be 4 billion; here 10 million."""
    path = tmp_path / "m.pt"
    number = (10**7).to_bytes(4, "little")
    path.write_bytes(legacy(b"celsewhere\nNet\nr" + number + b".") + pickle.dumps([], protocol=2))
    tracemalloc.start()
    try:
        found = read_inert(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert getattr(found, "__name__", None) == "Net"
    assert peak < 10**7


def test_modules_that_contain_each_other_end(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module.register_module("again", module)
    found = read_inert(save(module, tmp_path / "m.pt", True))
    assert isinstance(found, Inert)
    assert list(module_tensors(found)) == ["0.weight", "0.bias"]
