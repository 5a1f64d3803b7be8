"""A transition's forward and backward pass in native code.

The mathematics is that of `skipnets.ops.transition`: pooling comes first. Nothing is kept beside the input.
dγ is always summed explicitly.

Shapes: as in `skipnets.ops.transition`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from skipnets.ops.batch_norm import Statistics
from skipnets.ops.chunks import MapShape, as_matrix, empty_maps, empty_tensor_like
from skipnets.ops.native import instruction_set
from skipnets.ops.transition import Executor, TransitionParameters, halved

training: Any = importlib.import_module("skipnets_engine.training")  # An optional package.


def _forward(
    x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics
) -> tuple[Tensor, list[Tensor]]:
    shape = MapShape.of(x)
    pooled = halved(shape)
    y = empty_maps(pooled, len(parameters.weight), like=x, dtype=torch.float32)
    training.transition_forward(
        *_arguments(x, parameters, eps, statistics), as_matrix(y), instruction_set(), torch.get_num_threads()
    )
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous(), []


def _backward(
    gradient: Tensor,
    x: Tensor,
    parameters: TransitionParameters,
    eps: float,
    statistics: Statistics,
    saved: list[Tensor],  # noqa: ARG001 — nothing beside the arguments
) -> tuple[Tensor, ...]:
    x_gradient = empty_maps(MapShape.of(x), x.shape[1], like=x, dtype=torch.float32)
    gamma, beta, weight = (empty_tensor_like(each) for each in parameters)
    matrix = weight.flatten(1).contiguous()  # of the same memory unless the weight is a transposed one
    training.transition_backward(
        *_arguments(x, parameters, eps, statistics),
        as_matrix(gradient),
        as_matrix(x_gradient),
        [gamma, beta],
        matrix,
        instruction_set(),
        torch.get_num_threads(),
    )
    if matrix.data_ptr() != weight.data_ptr():
        weight.copy_(matrix.view_as(weight))
    return x_gradient, gamma, beta, weight


NATIVE = Executor(_forward, _backward)
"""For float32 on a CPU."""


def _arguments(
    x: Tensor, parameters: TransitionParameters, eps: float, statistics: Statistics
) -> tuple[Any, ...]:
    """What the forward and the backward pass are both given."""
    gamma, beta, weight = (each.detach() for each in parameters)
    return (
        as_matrix(x.detach()),
        [x.shape[0], x.shape[2], x.shape[3]],
        [gamma.contiguous(), beta.contiguous()],
        eps,
        [each.contiguous() for each in statistics],
        weight.flatten(1).contiguous(),
    )
