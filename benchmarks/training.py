"""A training step on the CPU: this project's block executions against what a user would otherwise take.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --models densenet_bc100_k12 resnet20 --batch-size 16 --clock processor

Compared are torchvision (contiguous, channels_last, and for DenseNets channels_last with
memory_efficient=True), timm, torchvision under torch.compile (with --compile: it takes minutes to build), and
this project's model run by "auto", plainly, in linear memory, and, for DenseNets, in linear memory with
recomputed bottlenecks. Where torchvision does not have a network, this project's layers one by one, which are
the same operators, stand in. (What `--device cuda` compares is said in training_gpu.py.) All start from
the same weights, and before anything is timed their outputs, gradients and running statistics must agree in
float64; in float32, which native kernels compute, they must be about as close to that as torchvision's.
(What torch.compile makes depends on dtype and size, and is timed without this check.)
The variants then take turns, in another order each round, after one step of warm-up; medians are compared,
and the ratio is the median of the ratios to the fastest of torchvision and timm within a round. A step is
forward, loss, backward and SGD, in float32, on random images.

Memory is measured for each variant in a process of its own: what autograd saves for the backward pass (each
storage once, parameters and input left out; the linear operations keep nothing beside it) and the peak of
resident memory during the first forward and backward pass, above what was resident before.

The share of the peak is the arithmetic of the step's convolutions and linear layers as they are defined, over
time and the multiply-adds that all threads together could do if nothing else took time (it needs
skipnets-engine). Winograd's algorithm and pooling before a convolution do with less arithmetic than that.

On a machine that others use too, wall-clock times of two threads say little: `--clock processor` uses one
thread and counts the processor time that it got. Five runs of all of it at different times, with both
instruction sets: training_table.py.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from skipnets.machine import processor
from skipnets.models import create_model, model_config
from skipnets.models.accounting import macs
from skipnets.models.family import family_of, network_graph
from skipnets.models.graph import ExecutionPolicy
from skipnets.models.registry import DenseNetConfig, ModelConfig
from skipnets.ops import native
from skipnets.training.benchmark import measure_step, random_batch

BASELINE = "torchvision channels_last"
FOREIGN = ("torchvision", "timm")
MODELS = {
    "densenet121": (16, 224),
    "densenet_bc100_k12": (64, 32),
    "densenet_bc40_k12": (64, 32),
    "resnet50": (16, 224),
    "resnet20": (64, 32),
    "rdnet_tiny": (4, 224),
}
TARGETS = {  # time in ratio to the fastest of what others make, saved bytes and peak in ratio to the baseline
    ("densenet121", "auto"): (1.00, 1.00, 1.00),
    ("densenet121", "linear"): (0.60, 0.21, 0.32),
    ("densenet121", "linear-recompute"): (0.70, 0.06, 0.18),
    ("densenet_bc100_k12", "auto"): (1.00, 1.00, 1.00),
    ("densenet_bc100_k12", "linear"): (0.55, 0.17, 0.24),
    ("densenet_bc100_k12", "linear-recompute"): (0.65, 0.05, 0.14),
    ("resnet50", "auto"): (1.00, 1.00, 1.00),
    ("resnet50", "linear"): (0.85, 1.00, 1.00),
    ("resnet20", "auto"): (1.00, 1.00, 1.00),
    ("resnet20", "linear"): (0.70, 1.00, 1.00),
}
SECONDS = 15
"""Short steps are timed in more rounds: for so long, five times as many at most."""
BARRED = list(dict.fromkeys(model for model, _ in TARGETS))

Makers = dict[str, Callable[[], nn.Module]]


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


def own(config: ModelConfig, execution: ExecutionPolicy) -> nn.Module:
    """This project's."""
    model = create_model(config.name).to(memory_format=torch.channels_last)
    model.set_block_execution(execution)
    return model


def torchvision_network(config: ModelConfig) -> nn.Module:
    """That of torchvision, or the same layers from this project."""
    return family_of(config).baseline(config) or create_model(config.name)


def variants(config: ModelConfig, *, compile_too: bool) -> Makers:
    """How to build each variant, by name."""
    import timm

    last = torch.channels_last
    made: Makers = {}
    if isinstance(config, DenseNetConfig):
        build: Callable[[], nn.Module] = functools.partial(torchvision_densenet, config)
        made["torchvision memory_efficient"] = lambda: torchvision_densenet(config, True).to(
            memory_format=last
        )
        made["timm"] = lambda: timm_densenet(config).to(memory_format=last)
    else:
        build = functools.partial(torchvision_network, config)
        if timm.is_model(config.name):
            made["timm"] = lambda: timm.create_model(config.name).to(memory_format=last)
    made = {"torchvision contiguous": build, BASELINE: lambda: build().to(memory_format=last), **made}
    if compile_too:
        made["torchvision compiled"] = lambda: cast(nn.Module, torch.compile(made[BASELINE]()))
    executions: tuple[ExecutionPolicy, ...] = ("auto", *family_of(config).executions)
    for execution in executions:
        made[execution] = functools.partial(own, config, execution)
    return made


def check_equality(config: ModelConfig, made: Makers) -> None:
    """One step of every variant on two small images must give the same numbers."""
    made = {name: make for name, make in made.items() if "compiled" not in name}
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


def alternate(made: Makers, batch: tuple[Tensor, Tensor], rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each step of each variant; those that are contiguous get contiguous images."""
    now = time.process_time if clock == "processor" else time.perf_counter
    contiguous, labels = batch[0].contiguous(), batch[1]
    models = {name: make().train() for name, make in made.items()}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-3) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    names, order = list(models), random.Random(0)
    begun, number = time.perf_counter(), 0
    while number <= rounds or (number <= 5 * rounds and time.perf_counter() - begun < SECONDS):
        number += 1
        order.shuffle(names)
        for name in names:
            model, images = models[name], contiguous if "contiguous" in name else batch[0]
            gc.collect()
            start = now()
            torch.autograd.backward(F.cross_entropy(model(images), labels))
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
    model = variants(config, compile_too=False)[variant]().train()
    images, labels = random_batch(config, int(batch_size), int(size), "cpu")
    if "contiguous" in variant:
        images = images.contiguous()
    cost = measure_step(model, images, labels, steps=0)
    print(json.dumps({"saved_bytes": cost.saved_bytes, "peak_bytes": cost.peak_bytes}))


def step_flops(config: ModelConfig, batch_size: int, size: int) -> int:
    """Multiplications and additions of a step: forward, and the gradients of weights and of all inputs."""
    graph = network_graph(config)
    each = dict(
        zip((operation.name for operation in graph.operations), macs(graph, (size, size)), strict=True)
    )
    return 2 * batch_size * (3 * sum(each.values()) - each[graph.first_convolution.name])


def peak_flops(threads: int) -> float | None:
    """Multiplications and additions a second that so many threads could do together."""
    if native.unavailable():
        return None
    engine: Any = importlib.import_module("skipnets_engine")  # An optional package.
    with ThreadPoolExecutor(threads) as pool:
        rates = pool.map(lambda _: engine.peak_macs(native.instruction_set()), range(threads))
        return 2 * float(sum(rates))


def compare(name: str, arguments: argparse.Namespace, peak: float | None) -> dict[str, Any]:
    """Everything about one model."""
    config = model_config(name)
    batch_size, size = MODELS[name]
    batch_size = arguments.batch_size or batch_size
    made = variants(config, compile_too=arguments.compile)
    if not arguments.times_alone:
        check_equality(config, made)
    batch = random_batch(config, batch_size, size, "cpu")
    times = alternate(made, batch, arguments.rounds, arguments.clock) if arguments.rounds else {}
    fastest = (
        list(map(min, *(own for name, own in times.items() if name.startswith(FOREIGN)))) if times else []
    )
    flops = step_flops(config, batch_size, size)
    rows = []
    for variant in made:
        row: dict[str, Any] = {"variant": variant}
        if not arguments.times_alone and "compiled" not in variant:  # What that saves is in its own graphs.
            row |= memory(name, variant, batch_size, size)
        if times:
            seconds = statistics.median(times[variant])
            row |= {
                "seconds": seconds,
                "slowest": max(times[variant]),
                "fastest": min(times[variant]),
                "time_ratio": statistics.median(
                    own / base for own, base in zip(times[variant], fastest, strict=True)
                ),
                "peak_share": flops / seconds / peak if peak else None,
            }
        rows.append(row)
    base = next(row for row in rows if row["variant"] == BASELINE)
    for row in rows:
        for kind in ("saved", "peak") if "saved_bytes" in row else ():
            row[f"{kind}_ratio"] = row[f"{kind}_bytes"] / base[f"{kind}_bytes"]
    return {"model": name, "batch_size": batch_size, "size": size, "flops": flops, "rows": rows}


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['model']}, batch of {result['batch_size']}, {result['size']}×{result['size']}: "
        f"{result['flops'] / 1e9:.0f} GFLOP"
    )
    heading = f"{'':30}{'s/step':>9}{'spread':>16}{'time':>7}{'of FMA':>8}"
    print(f"{heading}{'saved MiB':>11}{'':>7}{'peak MiB':>10}{'':>7}")
    for row in result["rows"]:
        timing = memory = " " * 40
        if "seconds" in row:
            spread = f"{row['fastest']:.2f}–{row['slowest']:.2f}"
            share = f"{row['peak_share']:8.0%}" if row["peak_share"] else " " * 8
            timing = f"{row['seconds']:9.3f}{spread:>16}{row['time_ratio']:7.3f}{share}"
        if "saved_bytes" in row:
            memory = (
                f"{row['saved_bytes'] / 2**20:11.1f}{row['saved_ratio']:7.3f}"
                f"{row['peak_bytes'] / 2**20:10.1f}{row['peak_ratio']:7.3f}"
            )
        print(f"{row['variant']:30}{timing}{memory}".rstrip())
        if targets := TARGETS.get((result["model"], row["variant"])):
            print(f"{'    at most':30}{targets[0]:32.2f}{targets[1]:26.2f}{targets[2]:17.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=BARRED, choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, help="of all models, other than their own")
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed steps of each variant at least; 0: memory alone"
    )
    parser.add_argument(
        "--times-alone", action="store_true", help="a repetition: without the check and without memory"
    )
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
    peak = peak_flops(torch.get_num_threads())
    if peak is not None:
        machine["GFLOP/s at most"] = round(peak / 1e9)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    results: list[dict[str, Any]] = []
    for name in arguments.models:
        results.append(compare(name, arguments, peak))
        show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
