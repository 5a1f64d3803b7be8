"""What a process forked from one that has computed computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os
from {module} import {function}
compute = {function}()
found = compute()
child = os.fork()
if child == 0:
    os._exit(0 if compute() == found else 7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
raise SystemExit(status)
"""


def assert_a_fork_computes_the_same(module: str, function: str) -> None:
    """Call what a function returns in a new process and in a fork of it.

    A new one: where other tests have begun threads of autograd, PyTorch refuses a backward pass in a fork.
    What is prepared before must not be repeated in the fork: convolutions of PyTorch's own may wait forever.
    """
    code = CODE.format(module=module, function=function)
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
