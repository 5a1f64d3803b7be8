"""The bytes of a model file; what the metadata say is tested with the classifier."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from skipnets.errors import UserError
from skipnets.runtimes.model_file import FORMAT_VERSION, read_model_file, write_model_file

TENSORS = {
    "norm.weight": np.arange(4, dtype=np.float32),
    "norm.running_mean": np.zeros(4, np.float32),
    "norm.running_var": np.ones(4, np.float32),
    "norm.num_batches_tracked": np.array(7, np.int64),
    "conv.weight": np.zeros((2, 3, 1, 1), np.float32),
}


def test_round_trip(tmp_path: Path) -> None:
    write_model_file(tmp_path / "deep" / "m.safetensors", {"classes": ["Käfer", "蜂"]}, TENSORS)
    file = read_model_file(tmp_path / "deep" / "m.safetensors")
    assert file.metadata == {"format_version": FORMAT_VERSION, "classes": ["Käfer", "蜂"]}
    assert file.shapes == {name: array.shape for name, array in TENSORS.items()}
    assert file.parameters == 4 + 6
    for name, array in file.tensors().items():
        assert array.dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(array, TENSORS[name])


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_model_file(tmp_path / "file" / "m.safetensors", {}, TENSORS)


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    write_model_file(tmp_path / "m.safetensors", {}, TENSORS)
    file = read_model_file(tmp_path / "m.safetensors")
    os.truncate(file.path, 50)
    with pytest.raises(UserError, match=r"m\.safetensors: its tensors cannot be read"):
        file.tensors()


@pytest.mark.parametrize("path", ["/dev/null", "a" * 300, "a\0b"])
def test_a_path_that_cannot_be_read(path: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read|not a model file|does not exist"):
        read_model_file(path)


def test_others_may_read_the_file_if_the_umask_lets_them(tmp_path: Path) -> None:
    write_model_file(tmp_path / "m.safetensors", {}, TENSORS)
    (tmp_path / "other").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    "name",
    [f"members.{'7' * 5000}.x", "members.01.conv.weight", "members.\u0664.x", "members.-1.x", "members.1."],
)
def test_a_tensor_of_no_network_is_named(name: str, tmp_path: Path) -> None:
    ones = {number: np.full((2,), number, np.float32) for number in (0, 1, 10)}
    right = {f"members.{number}.conv.weight": values for number, values in ones.items()}
    write_model_file(tmp_path / "m.safetensors", {}, right)
    found = read_model_file(tmp_path / "m.safetensors").members()
    assert [list(member["conv.weight"]) for member in found] == [list(values) for values in ones.values()]
    write_model_file(tmp_path / "m.safetensors", {}, {**right, name: np.zeros(2, np.float32)})
    with pytest.raises(UserError, match="belongs to no network of the ensemble"):
        read_model_file(tmp_path / "m.safetensors").members()
