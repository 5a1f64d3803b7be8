"""A .pt2 file is read as data: what could run code is refused by name, and nothing of it runs."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from skipnets.classifier import describe, load
from skipnets.deploy.export import Export
from skipnets.errors import UserError
from skipnets.runtimes.archive import Archive

Members = dict[str, bytes]


class Payload:
    """When unpickled, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def in_json(name: str, change: Callable[[Any], None]) -> Callable[[Members, Path], None]:
    """A change to one of the JSON members."""

    def apply(content: Members, _ran: Path) -> None:
        value = json.loads(content[name])
        change(value)
        content[name] = json.dumps(value).encode()

    return apply


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def nodes(graph: Any) -> Any:
    return graph["graph_module"]["graph"]["nodes"]


def pickle_a_weight(content: Members, ran: Path) -> None:
    config = json.loads(content[WEIGHTS])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    content[f"data/weights/{first['path_name']}"] = pickled(Payload(ran))
    content[WEIGHTS] = json.dumps(config).encode()


def add_constant(prefix: str) -> Callable[[Members, Path], None]:
    def apply(content: Members, ran: Path) -> None:
        content[f"data/constants/{prefix}0"] = pickle.dumps(Payload(ran))
        config = {
            "c": {"path_name": f"{prefix}0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        }
        content[CONSTANTS] = json.dumps({"config": config}).encode()

    return apply


def expression(graph: Any) -> None:
    extents = graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
    extents[0] = {"as_expr": {"expr_str": "__import__('os').system('true')", "hint": {"as_int": 2}}}


def expression_of_weight(config: Any) -> None:
    first = next(iter(config["config"].values()))
    first["tensor_meta"]["sizes"][0] = {"as_expr": {"expr_str": "1", "hint": None}}


def hostile_name(graph: Any) -> None:
    nodes(graph)[-1]["outputs"][0]["as_tensor"]["name"] = "x\nimport os"


# What is refused, how, and with which words.
REFUSED: dict[str, tuple[Callable[[Members, Path], None], str]] = {
    "a pickled weight": (pickle_a_weight, r"holds the tensor '.*' as a pickle"),
    "an opaque constant": (
        add_constant("opaque_obj_"),
        "holds 'data/constants/opaque_obj_0', which could",
    ),
    "a custom object": (add_constant("custom_obj_"), "holds 'data/constants/custom_obj_0', which could run"),
    "a pickled constant": (add_constant("tensor_"), "holds 'data/constants/tensor_0', which could run"),
    "compiled code": (
        lambda content, _: content.update({"data/aotinductor/model/m.so": b"\x7fELF"}),
        r"holds 'data/aotinductor/model/m\.so', which could run code",
    ),
    "weights of the older format": (
        lambda content, ran: content.update({"data/weights/model.pt": pickled(Payload(ran))}),
        r"holds 'data/weights/model\.pt', which could run code",
    ),
    "another operation": (
        in_json(GRAPH, lambda graph: nodes(graph)[-1].update(target="torch.ops.aten.from_file.default")),
        "holds the operation 'torch.ops.aten.from_file.default'",
    ),
    "a function of Python": (
        in_json(GRAPH, lambda graph: nodes(graph)[-1].update(target="os.system")),
        "holds the operation 'os.system'",
    ),
    "an expression in a weight": (in_json(WEIGHTS, expression_of_weight), "not a readable .pt2"),
    "an output that is not computed": (in_json(GRAPH, hostile_name), "'linear', which nothing computes"),
    "a weight beyond its data": (
        in_json(
            WEIGHTS,
            lambda config: next(iter(config["config"].values()))["tensor_meta"].update(
                storage_offset={"as_int": 9}
            ),
        ),
        "is larger than its data",
    ),
    "a weight that repeats one value": (
        in_json(
            WEIGHTS,
            lambda config: next(iter(config["config"].values()))["tensor_meta"].update(
                sizes=[{"as_int": 2**12}] * 2, strides=[{"as_int": 0}] * 2
            ),
        ),
        "is larger than its data",
    ),
    "a batch norm in training": (
        in_json(
            GRAPH,
            lambda graph: next(
                each for node in nodes(graph) for each in node["inputs"] if each["name"] == "training"
            ).update(arg={"as_bool": True}),
        ),
        r"holds batch_norm\.default as in training",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_run_code_is_refused_by_name(
    case: str, exports: dict[str, Export], tmp_path: Path
) -> None:
    change, message = REFUSED[case]
    content = members(exports["pt2"].path)
    change(content, tmp_path / "ran")
    path = write(tmp_path / "m.pt2", content)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "ran").exists()


def test_pickled_samples_guards_and_shapes_are_not_looked_at(
    exports: dict[str, Export], tmp_path: Path
) -> None:
    content = members(exports["pt2"].path)
    content["data/sample_inputs/model.pt"] = pickled(Payload(tmp_path / "ran"))
    graph = json.loads(content[GRAPH])
    expression(graph)
    graph["guards_code"] = [f"open({str(tmp_path / 'ran')!r}, 'w')"]
    content[GRAPH] = json.dumps(graph).encode()
    path = write(tmp_path / "m.pt2", content)
    image = torch.zeros(1, 3, 16, 20, dtype=torch.uint8)
    assert (load(path).logits(image) == load(exports["pt2"].path).logits(image)).all()
    assert not (tmp_path / "ran").exists()


def test_torch_itself_runs_them(exports: dict[str, Export], tmp_path: Path) -> None:
    content = members(exports["pt2"].path)
    content["data/sample_inputs/model.pt"] = pickled(Payload(tmp_path / "ran"))
    with pytest.raises(TypeError):  # what the payload gives is no pair of arguments, but it has run by then
        torch.export.load(write(tmp_path / "m.pt2", content))
    assert (tmp_path / "ran").exists()


DESCRIBE = """
import sys
sys.modules["torch"] = None  # importing it fails
from skipnets.classifier import describe
print(describe(sys.argv[1])["export"]["format"])
"""


def test_the_metadata_are_read_without_torch(exports: dict[str, Export]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DESCRIBE, exports["pt2"].path], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "pt2\n"), result.stderr


def test_files_of_older_pytorch_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(UserError, match=r"m\.pt2 was written by PyTorch before 2\.9"):
        describe(tmp_path / "m.pt2")


def test_what_is_damaged_is_refused(exports: dict[str, Export], tmp_path: Path) -> None:
    content = members(exports["pt2"].path)
    with pytest.raises(UserError, match="is compressed"):
        Archive(write(tmp_path / "a.pt2", content, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="not little-endian"):
        Archive(write(tmp_path / "b.pt2", {**content, "byteorder": b"big"}))
    with pytest.raises(UserError, match=r"it lacks models/model\.json"):
        Archive(write(tmp_path / "c.pt2", {"byteorder": b"little"}))
    with zipfile.ZipFile(write(tmp_path / "f.pt2", content), "a") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        for number in range(1000, 1100):  # all of them the same bytes
            copied = copy.copy(largest)
            copied.filename = f"f/data/weights/weight_{number}"
            archive.filelist.append(copied)
        archive.comment = b"so that the list is written"
    with pytest.raises(UserError, match="members overlap"):
        Archive(tmp_path / "f.pt2")
    whole = write(tmp_path / "g.pt2", content).read_bytes()
    with zipfile.ZipFile(tmp_path / "g.pt2") as archive:
        flags = archive.start_dir + 8  # of the first member in the directory: of encryption and the like
    for bit in range(16):
        damaged = bytearray(whole)
        damaged[flags + bit // 8] ^= 1 << bit % 8
        (tmp_path / "g.pt2").write_bytes(damaged)
        with contextlib.suppress(UserError), contextlib.closing(Archive(tmp_path / "g.pt2")) as opened:
            for name in content:
                opened.read(name)
            assert bit not in (0, 5, 6)
    for text in (b"[" * 100_000, b"[1]", b"{", b"\xff"):
        path = write(tmp_path / "d.pt2", {**content, GRAPH: text})
        with pytest.raises(UserError, match="damaged"):
            load(path)
    with pytest.raises(UserError, match="not UTF-8"):
        describe(write(tmp_path / "e.pt2", {**content, "extra/skipnets.json": b"\xff"}))
