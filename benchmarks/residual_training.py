"""A training step of a ResNet or RDNet: blocks as one operation against what a user would otherwise take.

    python benchmarks/residual_training.py resnet20 --batch-size 64 --size 32
    python benchmarks/residual_training.py rdnet_tiny --batch-size 8 --size 224
    python benchmarks/residual_training.py resnet50 --batch-size 16 --size 224 --compile

Compared are torchvision's network, contiguous and channels_last (for names that torchvision does not have,
this project's layers one by one, which are the same operators), timm's and, with --compile, torchvision's
under torch.compile. All start from the same weights and, before anything is timed, logits must agree. The
variants take turns, in another order each round; the ratio is the median of the ratios to the fastest of the
others within a round. A step is forward, loss, backward and SGD, in float32, by one thread, in processor
time. Saved bytes are those that autograd keeps for the backward pass, each storage once.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipnets.machine import processor
from skipnets.models import create_model, model_config
from skipnets.models.family import family_of
from skipnets.models.graph import BLOCK_EXECUTIONS
from skipnets.training.benchmark import random_batch, saved_bytes


def variants(name: str, *, compile_too: bool) -> dict[str, nn.Module]:
    """Networks with the same weights, by name."""
    config = model_config(name)
    own = {
        policy: create_model(name).to(memory_format=torch.channels_last)
        for policy in family_of(config).executions
    }
    made: dict[str, nn.Module] = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        baseline = family_of(config).baseline(config) or create_model(name)
        made[f"torchvision {str(memory_format).partition('.')[2]}"] = baseline.to(memory_format=memory_format)
    if timm.is_model(name):
        made["timm"] = timm.create_model(name).to(memory_format=torch.channels_last)
    if compile_too:
        baseline = family_of(config).baseline(config) or create_model(name)
        compiled = torch.compile(baseline.to(memory_format=torch.channels_last))
        made["torchvision compiled"] = cast(nn.Module, compiled)
    made |= {str(policy): model for policy, model in own.items()}
    weights = own["plain"].state_dict()
    for model in made.values():
        getattr(model, "_orig_mod", model).load_state_dict(weights)
        model.train()
    for policy, model in own.items():
        model.set_block_execution(policy)
    return made


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Processor seconds of a training step."""
    start = time.process_time()
    optimizer.zero_grad()
    torch.autograd.backward(F.cross_entropy(model(images), labels))
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made = variants(arguments.model, compile_too=arguments.compile)
    config = create_model(arguments.model).config
    images, labels = random_batch(config, arguments.batch_size, arguments.size, "cpu")
    last = images.contiguous(memory_format=torch.channels_last)
    given = {name: images.contiguous() if "contiguous" in name else last for name in made}
    expected = made["plain"](last[:4]).detach()
    for name, model in made.items():
        error = (model(given[name][:4]) - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, f"{name}: logits are off by {error:.2g}"
    optimizers = {
        name: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for name, model in made.items()
    }
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(arguments.rounds + 1):
        for name in random.sample(list(made), len(made)):
            seconds = step(made[name], optimizers[name], given[name], labels)
            if number > 0:  # The first steps allocate, and compile.
                times[name].append(seconds)
    fastest = list(
        map(min, zip(*(own for name, own in times.items() if name not in BLOCK_EXECUTIONS), strict=True))
    )
    print(f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    print(f"{arguments.model}, batch of {arguments.batch_size}, {arguments.size}×{arguments.size}")
    for name, model in made.items():
        ratio = statistics.median(own / base for own, base in zip(times[name], fastest, strict=True))
        saved = "" if "compiled" in name else f"{saved_bytes(model, given[name]) / 2**20:10.1f} MiB saved"
        print(f"{name:30}{statistics.median(times[name]):9.3f} s{ratio:8.3f}{saved}")
    report = made["linear"].block_execution_report()  # type: ignore[operator]
    print(f"linear: {', '.join(sorted(set(report.values())))}")


if __name__ == "__main__":
    main()
