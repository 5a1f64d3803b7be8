"""One of two processes that train under DistributedDataParallel, plainly and in linear memory, and compare.

Run by test_block_execution.py: python distributed_step.py STORE RANK
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from skipnets.models import create_model


def train(model: torch.nn.Module, batches: torch.Tensor) -> dict[str, torch.Tensor]:
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, x in enumerate(batches):
        optimizer.zero_grad()
        if step % 2:
            with parallel.no_sync():
                parallel(x.flip(0)).square().mean().backward()
        parallel(x).square().mean().backward()
        optimizer.step()
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def main(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = create_model("densenet_bc40_k12", block_config=(2, 3, 2), growth_rate=4, num_classes=5).double()
    linear, recomputing = copy.deepcopy(plain), copy.deepcopy(plain)
    linear.set_block_execution("linear")
    recomputing.set_block_execution("linear-recompute")
    torch.manual_seed(rank + 1)
    batches = torch.randn(4, 3, 3, 8, 8, dtype=torch.float64)
    expected = train(plain, batches)
    for model in (linear, recomputing):
        for name, tensor in train(model, batches).items():
            error, scale = (tensor - expected[name]).abs().max(), expected[name].abs().max()
            assert error <= 1e-9 * scale + 1e-12, f"{name}: off by {error} of {scale}"
        assert not any(text.startswith("plain") for text in model.block_execution_report().values())
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
