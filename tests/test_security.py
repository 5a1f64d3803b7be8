"""What SECURITY.md says that files cannot do."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.training import TrainConfig, resume, train


class Payload:
    """When unpickled, creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_the_payload_works_where_pickles_are_trusted(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.th", "w.ckpt", "w.npz", "w.safetensors"])
@pytest.mark.parametrize("plain", [False, True])
def test_weights_run_no_code(name: str, plain: bool, tmp_path: Path) -> None:
    value = {"conv1.weight": Payload(tmp_path / "ran")}
    if plain:
        (tmp_path / name).write_bytes(pickle.dumps(value))
    elif name.endswith(".npz"):
        np.savez(tmp_path / name, **{"conv1.weight": np.array([Payload(tmp_path / "ran")], dtype=object)})
    else:
        torch.save(value, tmp_path / name)
    with pytest.raises(UserError, match=rf"w\{Path(name).suffix}"):
        create_model("resnet20", weights=tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_resuming_a_run_runs_no_code(tmp_path: Path) -> None:
    config = TrainConfig(
        data="digits",
        out=tmp_path / "run",
        model="resnet20",
        model_options={"block_config": [1, 1], "width": 4},
        epochs=1,
        batch_size=256,
        workers=0,
        accelerator="cpu",
    )
    run = train(config)
    run.evaluation.unlink()  # as if it had been interrupted before its end
    shutil.rmtree(run.checkpoint.parent)
    run.checkpoint.parent.mkdir()
    torch.save({"state_dict": {}, "rows": Payload(tmp_path / "ran")}, run.checkpoint)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        resume(run.folder)
    assert not (tmp_path / "ran").exists()
