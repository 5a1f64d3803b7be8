"""Where the kernels cannot run, networks train without them and say why."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from skipnets.models import create_model
from skipnets.ops import triton as executor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pretends that there is a GPU")

CUDA = torch.device("cuda", 0)


def hide(monkeypatch: pytest.MonkeyPatch, replacement: ModuleType | None) -> None:
    """Let `import triton` find this, or nothing."""
    for name in list(sys.modules):
        if name.split(".")[0] == "triton" or name.startswith("skipnets.ops.triton."):
            monkeypatch.delitem(sys.modules, name)
            parent, _, child = name.rpartition(".")
            if parent == "skipnets.ops.triton":
                monkeypatch.delattr(executor, child)
    monkeypatch.setitem(sys.modules, "triton", replacement)


def missing(monkeypatch):
    hide(monkeypatch, None)


def broken(monkeypatch):
    hide(monkeypatch, ModuleType("triton"))


def without_compiler(monkeypatch):
    pytest.importorskip("triton")
    from skipnets.ops.triton import device

    def fail(*arguments, **options):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(device, "try_out", fail)


def old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


CASES = {
    "missing": (missing, "Triton is not installed"),
    "broken": (broken, "Triton cannot be used: "),
    "without a compiler": (
        without_compiler,
        "Triton cannot be used: Failed to find C compiler. Please specify via CC environment variable.",
    ),
    "old": (old, "fused kernels need compute capability 8.0"),
}


@pytest.mark.parametrize("case", CASES)
def test_trains_plainly_and_says_why(case, monkeypatch):
    spoil, reason = CASES[case]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    spoil(monkeypatch)
    own = executor.unavailable.__wrapped__
    # The meta device stands for the GPU: it computes nothing.
    monkeypatch.setattr(executor, "unavailable", lambda device: own(CUDA))
    model = create_model("densenet121", block_config=(2, 2), growth_rate=4).to("meta").train()
    model.set_block_execution("auto")
    assert model(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    report = model.block_execution_report()
    assert list(report) == ["stem", "features.denseblock1", "features.transition1", "features.denseblock2"]
    assert all(policy.startswith(f"plain: {reason}") for policy in report.values())
