"""A file's arrays may take some memory more than the file, not any."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from skipnets.errors import UserError
from skipnets.models.weights.expansion import check_expansion
from skipnets.models.weights.sources import read_source

MIB = 2**20


def test_the_limit(tmp_path: Path) -> None:
    """64 MiB, and 16 times the file."""
    path = tmp_path / "w.npz"
    path.write_bytes(bytes(MIB))
    check_expansion(path, 80 * MIB)
    with pytest.raises(UserError, match=r"w\.npz would take 81 MiB of memory, and has 1\.0 MiB: save the"):
        check_expansion(path, 81 * MIB)


def compressed_npz(path: Path) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), zeros=np.zeros(20 * MIB, np.float32))
    return path.with_suffix(".npz")


def compressed_records(path: Path) -> Path:
    torch.save({"zeros": torch.zeros(20 * MIB)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def one_number_in_many_places(path: Path) -> Path:
    torch.save({"conv1.weight": torch.zeros(1).expand(10**12)}, path)
    return path


@pytest.mark.parametrize("make", [compressed_npz, compressed_records, one_number_in_many_places])
def test_files_made_to_fill_the_memory(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"w\.(pt|npz) would take [\d,]+ MiB of memory"):
        read_source(make(tmp_path / "w.pt"), model_name="resnet20")
