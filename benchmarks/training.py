"""A training step of a DenseNet: this project's block executions against what a user would otherwise take.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --models densenet_bc100_k12 --batch-size 16 --clock processor

Compared are torchvision (contiguous, channels_last, and channels_last with memory_efficient=True), timm,
torchvision under torch.compile (with --compile: it takes minutes to build), and this project's model run by
"auto", plainly, in linear memory, and in linear memory with recomputed bottlenecks. (What `--device cuda`
compares is said in training_gpu.py.) All start from the same weights, and before anything is timed their
outputs, gradients and running statistics must agree in float64; in float32, which native kernels compute,
they must be about as close to that as torchvision's.
The variants then take turns, in another order each round, after one step of warm-up; medians are compared,
and the ratio is the median of the ratios to the fastest of torchvision and timm within a round. A step is
forward, loss, backward and SGD on the CPU, in float32, on random images.

Memory is measured for each variant in a process of its own: what autograd saves for the backward pass (each
storage once, parameters and input left out; the linear operations keep nothing beside it) and the peak of
resident memory during the first forward and backward pass, above what was resident before.

The arithmetic limit is the time that a step's convolutions alone would take: multiplications and additions
over the rate at which the library's convolutions and matrix products, forward and backward, run on this
machine, each at its own size, one chunk at a time.

On a machine that others use too, wall-clock times of two threads say little: `--clock processor` uses one
thread and counts the processor time that it got.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from skipnets.machine import processor
from skipnets.models import DenseNet, create_model, model_config
from skipnets.models.densenet import Transition
from skipnets.models.graph import BLOCK_EXECUTIONS, ExecutionPolicy
from skipnets.models.registry import DenseNetConfig
from skipnets.ops import chunks, native
from skipnets.ops.convolution import convolve, convolve_backward
from skipnets.training.benchmark import measure_step, random_batch

BASELINE = "torchvision channels_last"
FOREIGN = ("torchvision", "timm")
MODELS = {"densenet121": (16, 224), "densenet_bc100_k12": (64, 32)}
TARGETS = {  # time in ratio to the fastest of what others make, saved bytes and peak in ratio to the baseline
    ("densenet121", "auto"): (1.00, 1.00, 1.00),
    ("densenet121", "linear"): (0.60, 0.21, 0.32),
    ("densenet121", "linear-recompute"): (0.70, 0.06, 0.18),
    ("densenet_bc100_k12", "auto"): (1.00, 1.00, 1.00),
    ("densenet_bc100_k12", "linear"): (0.55, 0.17, 0.24),
    ("densenet_bc100_k12", "linear-recompute"): (0.65, 0.05, 0.14),
}


def torchvision_densenet(config: DenseNetConfig, memory_efficient: bool = False) -> nn.Module:
    """The DenseNet of torchvision; for a CIFAR network with another stem, for which it has no name."""
    model = torchvision.models.DenseNet(
        growth_rate=config.growth_rate,
        block_config=config.block_config,
        num_init_features=config.stem_channels,
        num_classes=config.num_classes,
        memory_efficient=memory_efficient,
    )
    return with_stem(model, config)


def timm_densenet(config: DenseNetConfig) -> nn.Module:
    """The same from timm, whose stem has 2k channels like ours."""
    import timm

    model = timm.models.densenet.DenseNet(
        growth_rate=config.growth_rate, block_config=config.block_config, num_classes=config.num_classes
    )
    return with_stem(model, config)


def with_stem(model: nn.Module, config: DenseNetConfig) -> nn.Module:
    """The model, its stem replaced by one 3×3 convolution where the config says so."""
    if config.stem == "cifar":
        conv0 = nn.Conv2d(config.in_chans, 2 * config.growth_rate, 3, padding=1, bias=False)
        children = list(model.get_submodule("features").named_children())
        kept = [item for item in children if item[0] not in ("conv0", "norm0", "relu0", "pool0")]
        model.features = nn.Sequential(OrderedDict([("conv0", conv0), *kept]))
    return model


def own_densenet(config: DenseNetConfig, execution: ExecutionPolicy) -> DenseNet:
    """This project's."""
    model = create_model(config.name)
    assert isinstance(model, DenseNet)
    model.set_block_execution(execution)
    return model


def variants(config: DenseNetConfig, *, compile_too: bool) -> dict[str, Callable[[], nn.Module]]:
    """How to build each variant, by name."""
    last = torch.channels_last
    made: dict[str, Callable[[], nn.Module]] = {
        "torchvision contiguous": lambda: torchvision_densenet(config),
        BASELINE: lambda: torchvision_densenet(config).to(memory_format=last),
        "torchvision memory_efficient": lambda: torchvision_densenet(config, True).to(memory_format=last),
    }
    made["timm"] = lambda: timm_densenet(config).to(memory_format=last)
    if compile_too:
        made["torchvision compiled"] = lambda: cast(nn.Module, torch.compile(made[BASELINE]()))
    for execution in ("auto", *BLOCK_EXECUTIONS):
        made[execution] = functools.partial(
            lambda execution: own_densenet(config, execution).to(memory_format=last), execution
        )
    return made


def check_equality(config: DenseNetConfig, made: dict[str, Callable[[], nn.Module]]) -> None:
    """One step of every variant on two small images must give the same numbers."""
    size = 64 if config.stem == "imagenet" else 16
    batches = [random_batch(config, 2, size, "cpu", seed) for seed in range(5)]
    torch.manual_seed(0)
    weights = made[BASELINE]().state_dict()
    expected = [one_step(BASELINE, made[BASELINE], weights, batch, torch.float64) for batch in batches]
    for name, make in made.items():
        for key, value in one_step(name, make, weights, batches[0], torch.float64).items():
            error, scale = (value - expected[0][key]).abs().max(), expected[0][key].abs().max()
            assert error <= 1e-7 * scale + 1e-12, f"{name}: {key} is off by {error:.3g} of {scale:.3g}"
    rounding: dict[str, list[float]] = {name: [] for name in (BASELINE, *made)}
    for name, make in {BASELINE: made[BASELINE], **made}.items():
        for batch, exact in zip(batches, expected, strict=True):
            found = one_step(name, make, weights, batch, torch.float32)
            errors = [
                (value - exact[key]).norm() / (exact[key].norm() + 1e-6) for key, value in found.items()
            ]
            rounding[name].append(float(torch.stack(errors).mean()))
        # A median: where a ReLU's input is within rounding of 0, a step is off by a thousand times as much.
        own, allowed = (statistics.median(rounding[each]) for each in (name, BASELINE))
        assert own <= 2 * allowed + 1e-5, (
            f"{name}: its float32 is off by {own:.3g}, {BASELINE} by {allowed:.3g}"
        )


def one_step(
    name: str,
    make: Callable[[], nn.Module],
    weights: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Output, gradients and buffers of a variant after one step."""
    model = make().to(dtype)
    getattr(model, "_orig_mod", model).load_state_dict(weights)
    output = model(batch[0].to(dtype))
    torch.autograd.backward(F.cross_entropy(output, batch[1]))
    found = {"output": output.detach(), **{key: p.grad for key, p in model.named_parameters()}}
    if "memory_efficient" not in name:  # It updates each first norm's running statistics twice a step.
        found |= {key: buffer for key, buffer in model.named_buffers() if buffer.is_floating_point()}
    return {key.removeprefix("_orig_mod."): value.double() for key, value in found.items()}


def alternate(
    made: dict[str, Callable[[], nn.Module]], batch: tuple[Tensor, Tensor], rounds: int, clock: str
) -> dict[str, list[float]]:
    """Seconds of each step of each variant."""
    now = time.process_time if clock == "processor" else time.perf_counter
    models = {name: make().train() for name, make in made.items()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-3) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    names, order = list(models), random.Random(0)
    for _ in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            model = models[name]
            gc.collect()
            start = now()
            torch.autograd.backward(F.cross_entropy(model(batch[0]), batch[1]))
            optimizers[name].step()
            optimizers[name].zero_grad()
            seconds[name].append(now() - start)
    return {name: times[1:] for name, times in seconds.items()}


def memory(model: str, variant: str, batch_size: int, size: int) -> dict[str, Any]:
    """Saved bytes and peak of one variant, from a process of its own."""
    command = [sys.executable, __file__, "--measure-memory", model, variant, str(batch_size), str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def print_memory(name: str, variant: str, batch_size: str, size: str) -> None:
    config = model_config(name)
    assert isinstance(config, DenseNetConfig)
    model = variants(config, compile_too=True)[variant]().train()
    images, labels = random_batch(config, int(batch_size), int(size), "cpu")
    if "contiguous" in variant:
        images = images.contiguous()
    cost = measure_step(model, images, labels, steps=0)
    print(json.dumps({"saved_bytes": cost.saved_bytes, "peak_bytes": cost.peak_bytes}))


def arithmetic_limit(config: DenseNetConfig, batch_size: int, size: int, clock: str) -> float:
    """Seconds that the convolutions of one step take at the rates of the library's kernels."""
    now = time.process_time if clock == "processor" else time.perf_counter

    def seconds(work: Callable[[], object]) -> float:
        work()
        times = []
        for _ in range(5):
            start = now()
            work()
            times.append(now() - start)
        return min(times)  # A rate is what the kernel reaches when nothing disturbs it.

    model = own_densenet(config, "plain")
    inputs: dict[nn.Conv2d, torch.Size] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda module, arguments: inputs.update({module: arguments[0].shape})
            )
    with torch.no_grad():
        model.eval()(torch.zeros(1, config.in_chans, size, size))
    total = 0.0
    for module, shape in inputs.items():
        pools = 2 if module.kernel_size == (1, 1) and module in transition_convolutions(model) else 1
        height, width = shape[2] // pools, shape[3] // pools
        images = max(min(batch_size, chunks.CHUNK_BYTES // (4 * shape[1] * height * width)), 1)
        x = torch.randn(images, shape[1], height, width).to(memory_format=torch.channels_last)
        total += batch_size / images * seconds(functools.partial(convolve_both_ways, module, x))
    return total


def transition_convolutions(model: DenseNet) -> list[nn.Module]:
    """Their input is pooled first by this project's operation, which leaves a quarter of the arithmetic."""
    return [module.conv for module in model.modules() if isinstance(module, Transition)]


def convolve_both_ways(module: nn.Conv2d, x: Tensor) -> None:
    """Forward, and the gradients of input and weights."""
    with torch.no_grad():
        if module.kernel_size == (1, 1):
            matrix, shape = chunks.as_matrix(x), chunks.MapShape.of(x)
            out = convolve(matrix, module.weight, shape)
            total = torch.zeros_like(module.weight)
            convolve_backward(out, matrix, module.weight, shape, weight_gradient=total)
        else:
            out = module(x)
            torch.ops.aten.convolution_backward(
                out,
                x,
                module.weight,
                None,
                module.stride,
                module.padding,
                module.dilation,
                False,
                [0, 0],
                1,
                [module.in_channels > 4, True, False],
            )


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model."""
    config = model_config(name)
    assert isinstance(config, DenseNetConfig)
    batch_size, size = MODELS[name]
    batch_size = arguments.batch_size or batch_size
    made = variants(config, compile_too=arguments.compile)
    check_equality(config, made)
    batch = random_batch(config, batch_size, size, "cpu")
    times = alternate(made, batch, arguments.rounds, arguments.clock) if arguments.rounds else {}
    fastest = (
        list(map(min, *(own for name, own in times.items() if name.startswith(FOREIGN)))) if times else []
    )
    rows = []
    for variant in made:
        row: dict[str, Any] = {"variant": variant, **memory(name, variant, batch_size, size)}
        if times:
            row |= {
                "seconds": statistics.median(times[variant]),
                "slowest": max(times[variant]),
                "fastest": min(times[variant]),
                "time_ratio": statistics.median(
                    own / base for own, base in zip(times[variant], fastest, strict=True)
                ),
            }
        rows.append(row)
    base = next(row for row in rows if row["variant"] == BASELINE)
    for row in rows:
        row["saved_ratio"] = row["saved_bytes"] / base["saved_bytes"]
        row["peak_ratio"] = row["peak_bytes"] / base["peak_bytes"]
    limit = arithmetic_limit(config, batch_size, size, arguments.clock) if times else None
    return {"model": name, "batch_size": batch_size, "size": size, "limit_seconds": limit, "rows": rows}


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['model']}, batch of {result['batch_size']}, {result['size']}×{result['size']}")
    if result["limit_seconds"]:
        print(f"arithmetic limit {result['limit_seconds']:.3f} s")
    print(f"{'':30}{'s/step':>9}{'spread':>16}{'time':>7}{'saved MiB':>11}{'':>7}{'peak MiB':>10}{'':>7}")
    for row in result["rows"]:
        timing = " " * 32
        if "seconds" in row:
            spread = f"{row['fastest']:.2f}–{row['slowest']:.2f}"
            timing = f"{row['seconds']:9.3f}{spread:>16}{row['time_ratio']:7.3f}"
        print(
            f"{row['variant']:30}{timing}{row['saved_bytes'] / 2**20:11.1f}{row['saved_ratio']:7.3f}"
            f"{row['peak_bytes'] / 2**20:10.1f}{row['peak_ratio']:7.3f}"
        )
        if targets := TARGETS.get((result["model"], row["variant"])):
            print(f"{'    at most':30}{targets[0]:32.2f}{targets[1]:18.2f}{targets[2]:17.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--batch-size", type=int, help="other than 16 (densenet121) or 64 (densenet_bc100_k12)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant; 0: memory alone")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--compile", action="store_true", help="torch.compile of torchvision, too")
    parser.add_argument("--json", type=Path, help="write everything as data to this file")
    parser.add_argument("--device", default="cpu", help="cuda: the comparison of training_gpu.py")
    parser.add_argument("--seconds", type=float, default=220, help="cuda: begin no table after so long")
    parser.add_argument("--compile-seconds", type=float, default=45, help="cuda: wait so long for compilers")
    parser.add_argument("--compile-mode", help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure-memory", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device != "cpu" or arguments.dry:
        import training_gpu

        training_gpu.main(arguments)
        return
    if arguments.measure_memory:
        print_memory(*arguments.measure_memory)
        return
    if arguments.clock == "processor":
        torch.set_num_threads(1)
    machine = {
        "processor": processor(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "native kernels": native.instruction_set() or native.unavailable() or "yes",
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": importlib.metadata.version("timm"),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results = []
    for name in arguments.models:
        results.append(compare(name, arguments))
        show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
