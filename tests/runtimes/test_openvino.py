"""Signals are handled whatever OpenVINO does to the stack they run on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from skipnets.deploy.export import Export

SIGNAL_AFTER_TWO = """
import gc, os, signal, sys
from skipnets.classifier import load
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first = load(sys.argv[1])
second = load(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 to send here")
def test_signals_are_handled_after_openvino(exports: dict[str, Export]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_TWO, exports["openvino"].path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


SIGNAL_AFTER_OTHERS = """
import gc, os, signal
import numpy, openvino
from openvino import opset13
from skipnets.runtimes.openvino import keeping_signal_stack
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
with keeping_signal_stack():
    parameter = opset13.parameter([1, 3], numpy.float32)
    graph = openvino.Model([opset13.relu(parameter)], [parameter])
    first, second = openvino.Core(), openvino.Core()
    compiled = [first.compile_model(graph, "CPU"), second.compile_model(graph, "CPU")]
    del compiled[0], first
    gc.collect()
del compiled, second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1 to send here")
def test_signals_are_handled_after_cores_of_others() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_OTHERS], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
