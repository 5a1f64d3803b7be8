"""Compiles all kernels of a training step for a GPU that need not be there; prints what each of them takes.

Run by `test_compilation.py` in a process of its own, where Triton's interpreter is off. Tensors are on the
CPU: compiling looks at their types and alignment alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.dense_block import DenseBlockPlan, LayerParameters
from skipnets.ops.dense_block import execute as execute_block
from skipnets.ops.stem import StemParameters, StemPlan
from skipnets.ops.stem import execute as execute_stem
from skipnets.ops.transition import TransitionParameters
from skipnets.ops.transition import execute as execute_transition
from skipnets.ops.triton import dense_block, kernels, launches, pooling_kernels, stem, transition


class Driver(DriverBase):
    """Says which GPU to compile for."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return self.target

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_benchmarker(self):
        return None


class Compiled(launches.Launches):
    """Compiles the launches of a pass and runs none."""

    def run(self, key, tensors, build):
        launches.compile_kernels(build)


def resources(kernel):
    """Registers, bytes of stack (to which registers are spilled), and bytes of shared memory."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        printed = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", printed).groups())
    return {"registers": registers, "stack": stack, "shared": kernel.metadata.shared}


def main(capability, dtype, growth_rate):
    driver.set_active(Driver(capability))
    compiled = Compiled()
    for module in (dense_block, stem, transition):
        module.LAUNCHES = compiled
    configs = dense_block._configs
    dense_block._configs = lambda *sizes: configs(*sizes[:-1], "cuda")
    launches.TUNER.left = lambda kernel, problem, candidates, device: candidates

    channels, bottleneck = 2 * growth_rate, 4 * growth_rate
    sizes = (
        (channels,),
        (channels,),
        (bottleneck, channels, 1, 1),
        (bottleneck,),
        (bottleneck,),
        (growth_rate, bottleneck, 3, 3),
    )
    layer = LayerParameters(*(torch.zeros(size, requires_grad=True) for size in sizes))
    x = torch.zeros(2, channels, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    for keep in (True, False):
        plan = DenseBlockPlan((1e-5,), (1e-5,), keep, dtype)
        execute_block(dense_block.FUSED, x, plan, [layer]).features.sum().backward()

    vector, weight = torch.zeros(channels), torch.zeros(channels // 2, channels, 1, 1, requires_grad=True)
    parameters = TransitionParameters(vector, vector, weight)
    execute_transition(
        transition.FUSED, x, parameters, 1e-5, Statistics(vector, vector)
    ).maps.sum().backward()

    weight = torch.zeros(channels, 3, 7, 7, requires_grad=True)
    plan = StemPlan(1e-5, keep_convolved=True, dtype=dtype)
    images = torch.zeros(2, 3, 32, 32)
    execute_stem(stem.FUSED, images, plan, StemParameters(weight, vector, vector)).maps.sum().backward()

    found = []
    for name, function in {**vars(kernels), **vars(pooling_kernels)}.items():
        if isinstance(function, triton.JITFunction):
            cached = function.device_caches[0][0] if 0 in function.device_caches else {}
            found += [{"kernel": name, **resources(kernel)} for kernel in cached.values()]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
