"""Which block execution trains a model fastest on this machine's CPU: measured on the model itself.

Which one that is depends on the processor, its instruction sets, the threads and the network. A few training
steps of copies of the model on random images are timed in turns; the choice is kept in the user's cache
folder (`skipnets.ops.choices`). On other devices the executors choose for themselves.

Shapes: N batch, C channels, H height, W width; of signals (N, C, L), of volumes (N, C, D, H, W).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipnets.machine import available_memory
from skipnets.models.accounting import training_bytes
from skipnets.models.backbone import Backbone
from skipnets.models.family import family_of, network_graph
from skipnets.models.graph import BlockExecution
from skipnets.models.registry import config_to_dict
from skipnets.ops.autograd import separate_graph
from skipnets.ops.choices import CHOICES
from skipnets.ops.guards import HOOK_TABLES

logger = logging.getLogger("skipnets")

_STEP_SECONDS = 0.5
"""About how long a measured step takes at most: the batch is made smaller where it would take longer."""

_ROUNDS = 3


class Execution(NamedTuple):
    """A block execution, and the memory format of weights and images that it is given."""

    policy: BlockExecution
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.policy}, {'channels_last' if self.channels_last else 'contiguous'}"

    @property
    def memory_format(self) -> torch.memory_format:
        """PyTorch's name of the memory format."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def fastest_execution(
    model: Backbone[Any],
    shape: tuple[int, ...],
    *,
    policy: BlockExecution | None = None,
    channels_last: bool | None = None,
) -> Execution:
    """The fastest way to train a model on the CPU; said in one line of the log.

    It is measured the first time for each network, batch size and image size. The model is not changed.

    Args:
        model: In training mode, with parameters on the CPU.
        shape: (N, C, H, W) of a batch.
        policy: The block execution; None chooses among those for which there is memory, and
            `linear-recompute`, which repeats work, only where the others need too much.
        channels_last: The memory format; None chooses. The linear operations work in channels_last order.
            Signals and volumes are given to the network contiguous.
    """
    if model.config.dims != 2:
        channels_last = False
    policies = (policy,) if policy is not None else _fitting(model, shape)
    formats = (True, False) if channels_last is None else (channels_last,)
    candidates = [
        Execution(each, last)
        for each in policies
        for last in formats
        if last or each == "plain" or channels_last is not None
    ]
    if len(candidates) == 1:
        return candidates[0]
    problem = _problem(model, shape, candidates)
    if not CHOICES.seconds(problem):
        logger.info("measuring which block execution is fastest, once for a network and batch size")
    probe = _Probe(model, shape)
    ways = {str(each): functools.partial(probe.step, each) for each in candidates}
    with torch.random.fork_rng(devices=()):
        name = CHOICES.choose(problem, ways, _ROUNDS)
    seconds = CHOICES.seconds(problem)
    logger.info("block execution: %s is the fastest on this machine; a step of", name)
    for other in seconds:
        if other != name:
            logger.info("  %s takes %.2f of its time", other, seconds[other] / seconds[name])
    return next(each for each in candidates if str(each) == name)


def operator_choices(model: Backbone[Any], shape: tuple[int, ...], execution: Execution) -> dict[str, str]:
    """What computes each layer shape under an execution, as `CHOICES` has chosen or chooses now."""
    with torch.random.fork_rng(devices=()), CHOICES.recording() as chosen:
        _Probe(model, (min(shape[0], 2), *shape[1:])).step(execution)
    return chosen


class _Probe:
    """Training steps of copies of a model on random images."""

    def __init__(self, model: Backbone[Any], shape: tuple[int, ...]) -> None:
        self._model, self._shape = model, shape
        self._copies: dict[Execution, Backbone[Any]] = {}
        self._images: Tensor | None = None

    def step(self, execution: Execution) -> None:
        """Forward and backward pass."""
        model = self._copies.get(execution)
        if model is None:
            model = _trainable_copy(self._model).train().to(memory_format=execution.memory_format)
            model.set_block_execution(execution.policy, warn=False)
            self._copies[execution] = model
        if self._images is None:
            self._images = self._random(model, self._batch(model))
        _train(model, self._images.contiguous(memory_format=execution.memory_format))

    def _batch(self, model: Backbone[Any]) -> int:
        """As many images as a step of `_STEP_SECONDS` takes, from the second step of two images."""
        fewest = min(2, self._shape[0])
        for _ in range(2):
            start = time.perf_counter()
            _train(model, self._random(model, fewest))
            seconds = time.perf_counter() - start
        return max(min(int(fewest * _STEP_SECONDS / seconds), self._shape[0]), fewest)

    def _random(self, model: Backbone[Any], images: int) -> Tensor:
        like = next(model.parameters())
        return torch.randn(images, *self._shape[1:], dtype=like.dtype, device=like.device)


def _trainable_copy(model: Backbone[Any]) -> Backbone[Any]:
    """A copy that trains all parameters, whatever is frozen now, and calls none of the model's hooks.

    What modules keep beside parameters and buffers, such as pruned weights, may be in a graph and cannot be
    copied with it.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in HOOK_TABLES:
                memo[id(value)] = OrderedDict()
            elif isinstance(value, Tensor):
                memo[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
    copied = copy.deepcopy(model, memo)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _train(model: Backbone[Any], images: Tensor) -> None:
    model.zero_grad()
    with separate_graph():
        torch.autograd.backward(model(images).float().square().mean())


def _fitting(model: Backbone[Any], shape: tuple[int, ...]) -> tuple[BlockExecution, ...]:
    """The block executions that need no more than the memory that is free now; the leanest at any rate."""
    executions = family_of(model.config).executions
    free = available_memory()
    graph = network_graph(model.config)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    fitting = tuple(
        each
        for each in executions
        if each != "linear-recompute"
        and (free is None or training_bytes(graph, shape[2:], shape[0], each, parameters=parameters) <= free)
    )
    return fitting or executions[-1:]


def _problem(model: Backbone[Any], shape: tuple[int, ...], candidates: Sequence[Execution]) -> str:
    """All that the choice depends on but the machine."""
    stages = [path for path, _ in model.named_stages()]  # Some may have been pruned.
    structure = json.dumps([config_to_dict(model.config), stages], sort_keys=True)
    network = f"{model.config.name} {hashlib.sha256(structure.encode()).hexdigest()[:12]}"
    autocast = "autocast " if torch.is_autocast_enabled("cpu") else ""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    size = "x".join(map(str, shape))
    return f"{autocast}{dtype} training step of {network} {size}: {'; '.join(map(str, candidates))}"
