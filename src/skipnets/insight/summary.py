"""A network as a table: shapes, parameters with their formulas, compute, memory, receptive fields.

Shapes: C channels, H height, W width, of one image; L layers of a dense block.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from skipnets.errors import UserError
from skipnets.insight.source import Architecture, Source, architecture_of
from skipnets.insight.trace import SILENT, Layer, Shape, Trace, skeleton, trace
from skipnets.tables import Display

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step in how the maps change.

    Attributes:
        path: What makes the map; "input" for the image itself.
        shape: (C, H, W), or (C,) after the global pooling.
        step: Pixels of the input between neighboring values; None after the global pooling.
        receptive_field: Pixels across that one value depends on; None for all.
    """

    path: str
    shape: Shape
    step: int | None
    receptive_field: int | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a network costs.

    Attributes:
        parameters: Learned numbers.
        macs: Multiply-accumulates of convolutions and linear layers for one image.
        weight_bytes: Of parameters and running statistics.
        kept_bytes: That autograd keeps for the backward pass of a whole batch, executed layer by layer.
        kept_bytes_linear: The same when dense blocks run in linear memory; None where that does not apply.
        connections: Of each dense block: its L layers have L(L+1)/2 direct connections.
    """

    parameters: int
    macs: int
    weight_bytes: int
    kept_bytes: int
    kept_bytes_linear: int | None
    connections: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary(Display):
    """A network's layers, stages and totals, to print or to compute with.

    Attributes:
        name: The registry's name.
        input: (C, H, W) of an image.
        batch_size: Images that `Totals.kept_bytes` is for.
        layers: Every module that does something, each before its parts; `Layer.kept` is of one image.
        stages: How the maps change from the input to the logits.
        totals: Of the whole network.
    """

    name: str
    input: Shape
    batch_size: int
    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]
    totals: Totals

    def rows(self, depth: int | None = None) -> list[Layer]:
        """The layers down to a depth: 1 for stages, 2 for what they are made of; None for all."""
        if depth is not None and depth < 1:
            raise UserError(f"depth must be at least 1, not {depth}")
        return [layer for layer in self.layers if depth is None or layer.depth <= depth]

    def to_rich(self, depth: int | None = None) -> RenderableType:
        """For `rich.print`: three tables, colored on a terminal."""
        layers = Table(title=self._headline(), title_justify="left", box=None, pad_edge=False)
        for heading, right, _ in _COLUMNS:
            layers.add_column(heading, justify="right" if right else "left", no_wrap=True)
        for layer in self.rows(depth):
            open_container = layer.parts and (depth is None or layer.depth < depth)
            cells = [text(layer) for _, _, text in _COLUMNS]
            indented = "  " * (layer.depth - 1) + _short_path(layer)
            layers.add_row(indented, *cells[1:], style="dim" if open_container else None)
        stages = Table(title="\nHow the maps change", title_justify="left", box=None, pad_edge=False)
        for heading, right, _ in _STAGE_COLUMNS:
            stages.add_column(heading, justify="right" if right else "left", no_wrap=True)
        for stage in self.stages:
            stages.add_row(*(text(stage) for _, _, text in _STAGE_COLUMNS))
        totals = Table(title="\nIn all", title_justify="left", show_header=False, box=None, pad_edge=False)
        totals.add_column(style="bold", no_wrap=True)
        totals.add_column()
        for name, value in self._total_lines():
            totals.add_row(name, Text(value))
        return Group(layers, stages, totals)

    def tables(self) -> list[RenderableType]:
        """What `print` and a notebook show: stages; `to_rich` can show what is inside them."""
        return [self.to_rich(1)]

    def to_markdown(self, depth: int | None = None) -> str:
        """Three tables for a README or a paper's appendix."""
        layers = [[text(layer) for _, _, text in _COLUMNS] for layer in self.rows(depth)]
        stages = [[text(stage) for _, _, text in _STAGE_COLUMNS] for stage in self.stages]
        return "\n".join(
            [
                f"## {self._headline()}\n",
                _markdown_table(_COLUMNS, layers),
                "### How the maps change\n",
                _markdown_table(_STAGE_COLUMNS, stages),
                "### In all\n",
                *(f"- **{name}**: {value}" for name, value in self._total_lines()),
                "",
            ]
        )

    def to_csv(self, depth: int | None = None) -> str:
        """One line a layer, exact numbers, memory in bytes; shapes as C×H×W."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Layer))
        for layer in self.rows(depth):
            writer.writerow(
                "×".join(map(str, value)) if isinstance(value, tuple) else value
                for value in _shallow(layer).values()
            )
        return file.getvalue()

    def to_dict(self, depth: int | None = None) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "name": self.name,
            "input": list(self.input),
            "batch_size": self.batch_size,
            "layers": [_shallow(layer) for layer in self.rows(depth)],
            "stages": [_shallow(stage) for stage in self.stages],
            "totals": _shallow(self.totals),
        }

    def to_json(self, depth: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(depth), indent=2, ensure_ascii=False)

    def _headline(self) -> str:
        return f"{self.name}, images of {_shape(self.input)}"

    def _total_lines(self) -> list[tuple[str, str]]:
        totals, images = self.totals, "an image" if self.batch_size == 1 else f"{self.batch_size} images"
        lines = [
            ("parameters", f"{totals.parameters:,}"),
            ("MACs", f"{totals.macs:,} an image"),
            ("weights", f"{totals.weight_bytes / MIB:,.1f} MiB"),
            ("kept for the backward pass", f"{totals.kept_bytes / MIB:,.1f} MiB for {images}"),
        ]
        if totals.kept_bytes_linear is not None:
            lines.append(
                ("the same in linear memory", f"{totals.kept_bytes_linear / MIB:,.1f} MiB for {images}")
            )
        if totals.connections:
            each = " + ".join(f"{count:,}" for count in totals.connections.values())
            whole = sum(totals.connections.values())
            lines.append(("direct connections, L(L+1)/2 a block", f"{each} = {whole:,}"))
        return lines


def summarize(
    source: Source, *, input_size: int | tuple[int, int] | None = None, batch_size: int = 1, **fields: Any
) -> Summary:
    """Work out what a network does to an image, layer by layer; nothing is computed and no weights are read.

    Args:
        source: A registry name, a model file, a run folder, a configuration, a model or a classifier.
        input_size: Height and width of the images, or one number for both. None takes what the model was
            trained with, or 224 behind an ImageNet stem and 32 behind a CIFAR stem.
        batch_size: Images that the memory totals are for.
        fields: Of the configuration, to replace, for example `in_chans=1`; for registry names alone.

    Raises:
        UserError: For an unknown model or field, or images that are too small.

    Examples:
        >>> summarize("densenet121").totals.parameters
        7978856
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    architecture = architecture_of(source, **fields)
    config, shape = architecture.config, input_shape(architecture, input_size)
    model = skeleton(config)
    walked = trace(model, shape)
    layers = tuple(layer for layer in walked.layers if layer.kind not in SILENT)
    return Summary(
        name=config.name,
        input=shape,
        batch_size=batch_size,
        layers=layers,
        stages=_stages(walked, layers),
        totals=Totals(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=sum(layer.macs for layer in layers if layer.depth == 1),
            weight_bytes=sum(
                tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()
            ),
            kept_bytes=walked.kept_bytes(batch_size),
            kept_bytes_linear=_kept_linear(model, shape, batch_size),
            connections=_connections(walked),
        ),
    )


def input_shape(architecture: Architecture, input_size: int | tuple[int, int] | None) -> Shape:
    """(C, H, W) of the images: of the size that was asked for, or of the usual one."""
    if input_size is None:
        height, width = architecture.input_size
    else:
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise UserError(f"input_size must be at least 1, not {height}×{width}")
    return architecture.config.in_chans, height, width


def _kept_linear(model: Any, shape: Shape, batch_size: int) -> int | None:
    walked = trace(model, shape, execution="linear")
    if not any(operation.kind == "dense block" for operation in walked.operations):
        return None
    return walked.kept_bytes(batch_size)


def _stages(walked: Trace, layers: Sequence[Layer]) -> tuple[Stage, ...]:
    image = walked.values[0]
    stages = [Stage(path="input", shape=image.shape, step=1, receptive_field=1)]
    for layer in layers:
        if layer.depth != 1 or layer.output == stages[-1].shape:
            continue
        grid = walked.outputs[layer.path].grid
        stages.append(
            Stage(
                path=layer.path,
                shape=layer.output,
                step=grid.step if len(layer.output) == 3 else None,
                receptive_field=layer.receptive_field,
            )
        )
    return tuple(stages)


def _connections(walked: Trace) -> dict[str, int]:
    blocks = [layer for layer in walked.layers if layer.kind == "DenseBlock"]
    depths = {block.path: len(walked.inside(block)) for block in blocks}
    return {path: depth * (depth + 1) // 2 for path, depth in depths.items()}


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _short_path(layer: Layer) -> str:
    return layer.path if layer.depth == 1 else layer.path.rsplit(".", 1)[-1]


def _window(layer: Layer) -> str:
    if layer.kernel is None:
        return ""
    stride = "" if layer.stride in (None, (1, 1)) else f" /{layer.stride[0]}"
    return _shape(layer.kernel) + stride


def _parameters(layer: Layer) -> str:
    return layer.formula or (f"{layer.parameters:,}" if layer.parameters else "")


def short_count(count: int) -> str:
    """1,234,567 → 1.23 M: three figures are enough to compare by."""
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            scaled = count / 10**power
            return f"{scaled:.{max(2 - int(math.log10(scaled)), 0)}f} {letter}"
    return str(count) if count else ""


def _mib(count: int) -> str:
    return f"{count / MIB:,.2f}" if count else ""


def _pixels(count: int | None) -> str:
    return "all" if count is None else str(count)


Column = tuple[str, bool, Callable[[Any], str]]

# Heading, whether it is set to the right, and how a layer's cell reads.
_COLUMNS: tuple[Column, ...] = (
    ("layer", False, lambda layer: layer.path),
    ("kind", False, lambda layer: layer.kind),
    ("window", False, _window),
    ("input", False, lambda layer: _shape(layer.input)),
    ("output", False, lambda layer: _shape(layer.output)),
    ("parameters", True, _parameters),
    ("MACs", True, lambda layer: short_count(layer.macs)),
    ("kept MiB", True, lambda layer: _mib(layer.kept)),
    ("field", True, lambda layer: _pixels(layer.receptive_field)),
)
_STAGE_COLUMNS: tuple[Column, ...] = (
    ("stage", False, lambda stage: stage.path),
    ("channels × height × width", False, lambda stage: _shape(stage.shape)),
    ("step", True, lambda stage: "" if stage.step is None else str(stage.step)),
    ("receptive field", True, lambda stage: _pixels(stage.receptive_field)),
)


def _markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|" + "|".join("---:" if right else "---" for _, right, _ in columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
