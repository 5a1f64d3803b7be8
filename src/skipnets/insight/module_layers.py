"""The layers of a network without a graph, from the calls of its modules: the rows of a summary.

Shapes: C channels, H height, W width, of one image; (C, L) of a signal, (C, D, H, W) of a volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from skipnets.insight.layers import Layer
from skipnets.models.module_calls import Call, record_calls

__all__ = ["module_layers", "window"]

# Tensors of a layer whose sizes are listed.
_MOST_TENSORS = 4


def module_layers(network: nn.Module, shape: Sequence[int]) -> list[Layer]:
    """List a network's layers in the order in which they run, each before its parts.

    A module that runs twice has two rows, its parameters in the first. What belongs to no layer, such as
    tensors of the network itself, is a row at the end. Steps and receptive fields are not known.

    Args:
        network: Is run, and not changed.
        shape: (C, H, W) of an image.

    Raises:
        UserError: If it fails on such images.
    """
    whole, *calls = record_calls(network, shape)
    rows = [_layer(call) for call in calls]
    outermost = [row for row in rows if row.depth == 1]
    parameters, macs, kept = (
        getattr(whole, name) - sum(getattr(row, name) for row in outermost)
        for name in ("parameters", "macs", "kept")
    )
    if parameters or macs or kept or not rows:
        rows.append(_row(whole, "(outside of layers)", parameters=parameters, macs=macs, kept=kept))
    return rows


def _layer(call: Call) -> Layer:
    return _row(
        call,
        call.path,
        parameters=call.parameters,
        macs=call.macs,
        kept=call.kept,
        parts=call.parts,
        depth=call.depth,
        kernel=window(call, "kernel_size"),
        stride=window(call, "stride"),
        formula=_formula(call),
    )


def _row(
    call: Call,
    path: str,
    *,
    parameters: int,
    macs: int,
    kept: int,
    parts: bool = False,
    depth: int = 1,
    kernel: tuple[int, ...] | None = None,
    stride: tuple[int, ...] | None = None,
    formula: str = "",
) -> Layer:
    return Layer(
        path=path,
        kind=type(call.module).__name__,
        depth=depth,
        parts=parts,
        kernel=kernel,
        stride=stride,
        input=call.input,
        output=call.output,
        parameters=parameters,
        formula=formula,
        macs=macs,
        kept=kept,
        step=None,
        receptive_field=None,
    )


def window(call: Call, name: str) -> tuple[int, ...] | None:
    """A module's attribute as one number for each axis; None where it has no window, or is of parts.

    Args:
        call: Of the module.
        name: "kernel_size" or "stride".
    """
    size, value = getattr(call.module, "kernel_size", None), getattr(call.module, name, None)
    if call.parts or size is None or value is None:
        return None
    axes = len(call.input) - 1
    values: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    return values if values and all(isinstance(each, int) for each in values) else None


def _formula(call: Call) -> str:
    """A layer's parameters as the sum of its tensors: "8×1×3×3 + 8 = 80"."""
    shapes = [tuple(parameter.shape) for parameter in call.module.parameters(recurse=False)]
    if call.parts or not call.parameters or not 0 < len(shapes) <= _MOST_TENSORS:
        return ""
    formula = " + ".join("×".join(map(str, shape)) or "1" for shape in shapes)
    total = sum(parameter.numel() for parameter in call.module.parameters(recurse=False))
    return f"{formula} = {total:,}" if total == call.parameters else ""
