"""Where native kernels are not used, and what is said of it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from skipnets.ops import native

X, WEIGHT = torch.zeros(2, 4, 3, 3), torch.zeros(4, 16, 3, 3)
MISSING = ModuleNotFoundError("No module named 'skipnets_engine'", name="skipnets_engine")
OLDER = ModuleNotFoundError("No module named", name="skipnets_engine.training")
CASES = {
    "missing": (MISSING, "skipnets-engine is not installed"),
    "older": (OLDER, "skipnets-engine is an older version"),
    "broken": (ImportError("wrong\nELF class"), "skipnets-engine cannot be loaded: wrong ELF class"),
    "newer": (SimpleNamespace(INTERFACE=99), "skipnets-engine has version 99 of its interface, not 5"),
    "right": (SimpleNamespace(INTERFACE=5, share_openmp=lambda library: True), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_that_is_installed(case, monkeypatch):
    found, reason = CASES[case]

    def import_module(name):
        assert name == "skipnets_engine.training"
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(native.importlib, "import_module", import_module)
    assert native.unavailable.__wrapped__() == reason


THREADS = """
import os
import torch
from skipnets.ops import native
from skipnets.ops.native.stem import NATIVE
from tests.ops.native.test_stem import Case
assert native.unavailable() is None
torch.set_num_threads(3)
case = Case((6, 40, 40), 3, 4)
torch.ones(1000, 1000).sin()  # PyTorch's threads start here.
before = len(os.listdir("/proc/self/task"))
first, second = (case.run(case.by(NATIVE), torch.float32) for _ in range(2))
assert all(torch.equal(*pair) for pair in zip(first, second, strict=True) if pair[0] is not None)
print(before, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux" or native.unavailable() is not None, reason="needs the engine")
def test_training_uses_the_threads_of_pytorch():
    # Threads of its own would wait while PyTorch's spin: with two threads it was no faster than with one.
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before >= 3
    assert after - before <= 1  # autograd's own thread, perhaps


def test_blocks_that_it_does_not_run(monkeypatch):
    monkeypatch.setattr(native, "unavailable", lambda: None)
    assert native.unsupported_block(X, WEIGHT, dtype=torch.float32) is None
    assert (
        native.unsupported_block(X, WEIGHT, dtype=torch.float64) == "there are no native kernels for float64"
    )
    assert native.unsupported_block(X, None, dtype=torch.float32) == (
        "there are native kernels for layers with a bottleneck alone"
    )
    meta = X.to("meta")
    assert (
        native.unsupported_block(meta, WEIGHT, dtype=torch.float32)
        == "there are native kernels for CPUs alone"
    )


def test_the_environment_forces_an_instruction_set(monkeypatch):
    monkeypatch.delenv("SKIPNETS_ENGINE_ISA", raising=False)
    assert native.instruction_set() == ""
    monkeypatch.setenv("SKIPNETS_ENGINE_ISA", "avx2")
    assert native.instruction_set() == "avx2"
