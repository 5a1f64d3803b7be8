"""Summarize a network as tables: shapes, parameters with formulas, compute, memory, receptive fields.

Shapes: C channels, H height, W width, of one image; (C, L) of a signal, (C, D, H, W) of a volume; L
    layers of a dense block.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType
from torch import nn

from skipnets.axes import INPUTS
from skipnets.errors import UserError
from skipnets.insight.layers import Layer, layers
from skipnets.insight.module_layers import module_layers
from skipnets.insight.source import Architecture, Source, architecture_of
from skipnets.models.accounting import FLOAT_BYTES, kept_bytes, steps
from skipnets.models.family import family_of
from skipnets.models.graph import BlockExecution, Graph
from skipnets.models.operations import Shape
from skipnets.tables import Display, FittingTable, make_table, properties_table
from skipnets.terminal import csv_rows, csv_text

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A change in the shape of the feature maps.

    Attributes:
        path: Module that outputs the maps; "input" for the image.
        shape: (C, H, W), or (C,) after the global pooling.
        step: Pixels of the input between neighboring values; None after the global pooling, and where
            `Summary.was_run`.
        receptive_field: Width, in pixels, that one value depends on; None for the whole image, and where
            `Summary.was_run`.
    """

    path: str
    shape: Shape
    step: int | None
    receptive_field: int | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Cost of a network.

    Attributes:
        parameters: Number of trainable parameters.
        macs: Multiply-accumulates of convolutions and linear layers for one image; of a network that was run,
            those of other products of matrices, too, such as attention's.
        weight_bytes: Bytes of parameters and running statistics.
        kept_bytes: Bytes saved for the backward pass of a whole batch, for "plain" and each other block
            execution that this network supports.
        connections: Number of direct connections of each dense block: L(L+1)/2 for L layers.
    """

    parameters: int
    macs: int
    weight_bytes: int
    kept_bytes: dict[BlockExecution, int]
    connections: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Summary(Display):
    """Layers, stages and totals of a network.

    Attributes:
        name: The registry's name.
        input: (C, H, W) of an image.
        batch_size: Batch size of `Totals.kept_bytes`.
        layers: All layers, each before its parts; `Layer.kept` is for one image.
        stages: Changes in the feature maps' shape, from the input to the logits.
        totals: Totals of the network.
        members: Number of such networks in an ensemble; everything else is of one of them.
        was_run: Whether the network has no graph and was run instead: its layers are its modules, of which
            steps and receptive fields are not known.
    """

    name: str
    input: Shape
    batch_size: int
    layers: tuple[Layer, ...]
    stages: tuple[Stage, ...]
    totals: Totals
    members: int = 1
    was_run: bool = False

    def rows(self, depth: int | None = None) -> list[Layer]:
        """The layers down to a depth: 1 for stages, 2 for their parts; None for all."""
        if depth is not None and depth < 1:
            raise UserError(f"depth={depth}: must be at least 1")
        return [layer for layer in self.layers if depth is None or layer.depth <= depth]

    def to_rich(self, depth: int | None = None) -> RenderableType:
        """Three tables for `rich.print`. A narrow terminal does without some columns of the first."""
        columns, stage_columns = self._columns(), self._stage_columns()
        rows, dim = [], []
        around: list[str] = []
        for index, layer in enumerate(self.rows(depth)):
            if layer.parts and (depth is None or layer.depth < depth):
                dim.append(index)
            around = around[: layer.depth - 1]
            inner = layer.path.removeprefix(f"{around[-1]}.") if around else layer.path
            around.append(layer.path)
            rows.append(["  " * (layer.depth - 1) + inner, *(text(layer) for _, _, text in columns[1:])])
        optional = [name for name in _OPTIONAL if name in _headings(columns)]
        layers = FittingTable(_headings(columns), rows, optional=optional, title=self._headline(), dim=dim)
        stages = make_table(
            _headings(stage_columns),
            [[text(stage) for _, _, text in stage_columns] for stage in self.stages],
            title="\nFeature maps",
        )
        return Group(layers, stages, properties_table(self._total_lines(), title="\nTotals"))

    def tables(self) -> list[RenderableType]:
        """Tables that `print` and notebooks show: stages only; `to_rich` also shows their parts."""
        return [self.to_rich(1)]

    def to_markdown(self, depth: int | None = None) -> str:
        """Three tables in Markdown."""
        columns, stage_columns = self._columns(), self._stage_columns()
        layers = [[text(layer) for _, _, text in columns] for layer in self.rows(depth)]
        stages = [[text(stage) for _, _, text in stage_columns] for stage in self.stages]
        return "\n".join(
            [
                f"## {self._headline()}\n",
                _markdown_table(columns, layers),
                "### Feature maps\n",
                _markdown_table(stage_columns, stages),
                "### Totals\n",
                *(f"- **{name}**: {value}" for name, value in self._total_lines()),
                "",
            ]
        )

    def to_csv(self, depth: int | None = None) -> str:
        """CSV with one line per layer: exact numbers, memory in bytes, shapes as C×H×W."""
        file = io.StringIO()
        writer = csv_rows(file)
        writer.writerow(field.name for field in dataclasses.fields(Layer))
        for layer in self.rows(depth):
            writer.writerow(
                csv_text("×".join(map(str, value)) if isinstance(value, tuple) else value)
                for value in _shallow(layer).values()
            )
        return file.getvalue()

    def to_dict(self, depth: int | None = None) -> dict[str, Any]:
        """The summary as plain values for JSON."""
        return {
            "name": self.name,
            **({"members": self.members} if self.members > 1 else {}),
            "input": list(self.input),
            "batch_size": self.batch_size,
            **({"was_run": True} if self.was_run else {}),
            "layers": [_shallow(layer) for layer in self.rows(depth)],
            "stages": [_shallow(stage) for stage in self.stages],
            "totals": _shallow(self.totals),
        }

    def to_json(self, depth: int | None = None) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(depth), indent=2, ensure_ascii=False)

    def _headline(self) -> str:
        one = f", one network of an ensemble of {self.members}" if self.members > 1 else ""
        return f"{self.name}, {INPUTS[len(self.input) - 1]} of {_shape(self.input)}{one}"

    def _columns(self) -> list[Column]:
        """The columns of the layers: those of which something is known."""
        return [column for column in _COLUMNS if not (self.was_run and column[0] in _OF_GRAPHS)]

    def _stage_columns(self) -> list[Column]:
        """The columns of the stages, the shape with a name for each of its axes."""
        axes = {1: "length", 2: "height × width", 3: "depth × height × width"}[len(self.input) - 1]
        return [
            (f"channels × {axes}" if name == _SHAPE else name, right, text)
            for name, right, text in _STAGE_COLUMNS
            if not (self.was_run and name in _OF_GRAPHS)
        ]

    def _total_lines(self) -> list[tuple[str, str]]:
        totals, dims = self.totals, len(self.input) - 1
        one = {1: "a signal", 2: "an image", 3: "a volume"}[dims]
        images = one if self.batch_size == 1 else f"{self.batch_size} {INPUTS[dims]}"
        ensemble = f" (ensemble: {self.members * totals.parameters:,})" if self.members > 1 else ""
        lines = [
            ("parameters", f"{totals.parameters:,}{ensemble}"),
            ("MACs", f"{totals.macs:,} {one}"),
            ("weights", f"{totals.weight_bytes / MIB:,.1f} MiB"),
            *(
                (_KEPT[execution], f"{count / MIB:,.1f} MiB for {images}")
                for execution, count in totals.kept_bytes.items()
            ),
        ]
        if totals.connections:
            each = " + ".join(f"{count:,}" for count in totals.connections.values())
            whole = sum(totals.connections.values())
            lines.append(("direct connections, L(L+1)/2 a block", f"{each} = {whole:,}"))
        return lines


def summarize(
    source: Source, *, input_size: int | tuple[int, ...] | None = None, batch_size: int = 1, **fields: Any
) -> Summary:
    """Summarize a network layer by layer, without running it or reading weights.

    A network that has no graph, because it is no part of this package or was modified, is run on noise; what
    a file names as its import must be trusted (`skipnets.trust.trusting`).

    Args:
        source: A registry name, a model file, a run folder, a configuration, a module or a classifier.
        input_size: Height and width of the images, or one number for both; length of signals; depth, height
            and width of volumes. None uses the size that the model was trained with, or 224 with an ImageNet
            stem and 32 with a CIFAR stem; of signals 1024, of volumes 96 at most. A module that is no part of
            this package needs one.
        batch_size: Batch size of the memory totals.
        fields: Configuration fields to replace, for example `in_chans=1`; for registry names, and `in_chans`
            of a module, by default what its first convolution reads.

    Raises:
        UserError: For an unknown model or field, images that are too small, or a module that fails on them.

    Examples:
        >>> summarize("densenet121").totals.parameters
        7978856
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    architecture = architecture_of(source, **fields)
    size = architecture.image_size(input_size)
    if architecture.network is not None:
        return _summary_of_run(architecture, architecture.network, size, batch_size)
    graph = architecture.graph
    rows = layers(graph, size)
    image = (graph.values[0].channels, *size)
    return Summary(
        name=graph.name,
        input=image,
        batch_size=batch_size,
        layers=tuple(rows),
        stages=_stages(image, rows),
        totals=Totals(
            parameters=graph.parameter_count(),
            macs=sum(layer.macs for layer in rows if layer.depth == 1),
            weight_bytes=weight_bytes(graph),
            kept_bytes={
                execution: kept_bytes(graph, size, batch_size, execution)
                for execution in family_of(architecture.config).executions
                if execution == "plain" or len(steps(graph, size, execution)) < len(graph.operations)
            },
            connections=_connections(graph),
        ),
        members=architecture.members,
    )


def _summary_of_run(architecture: Architecture, network: nn.Module, size: Shape, batch_size: int) -> Summary:
    """Summarize a network without a graph."""
    config = architecture.config
    image = (config.in_chans, *size)
    rows = module_layers(network, image)
    outermost = [layer for layer in rows if layer.depth == 1]
    tensors = network.state_dict(keep_vars=True).values()
    return Summary(
        name=config.name,
        input=image,
        batch_size=batch_size,
        layers=tuple(rows),
        stages=_stages(image, rows),
        totals=Totals(
            parameters=sum(layer.parameters for layer in outermost),
            macs=sum(layer.macs for layer in outermost),
            weight_bytes=sum({id(tensor): tensor.nbytes for tensor in tensors}.values()),
            kept_bytes={"plain": batch_size * sum(layer.kept for layer in outermost)},
            connections={},
        ),
        members=architecture.members,
        was_run=True,
    )


def weight_bytes(graph: Graph) -> int:
    """Bytes of parameters and buffers: float32, except for the 64-bit counters of batch norms."""
    return sum(math.prod(shape) * FLOAT_BYTES if shape else 8 for shape in graph.tensors().values())


def _stages(image: Shape, rows: Sequence[Layer]) -> tuple[Stage, ...]:
    stages = [Stage(path="input", shape=image, step=1, receptive_field=1)]
    for layer in rows:
        if layer.depth == 1 and layer.output != stages[-1].shape:
            stages.append(
                Stage(
                    path=layer.path,
                    shape=layer.output,
                    step=layer.step,
                    receptive_field=layer.receptive_field,
                )
            )
    return tuple(stages)


def _connections(graph: Graph) -> dict[str, int]:
    depths = {
        block.path: sum(
            scope.kind == "dense layer" and block.start <= scope.start < block.stop for scope in graph.scopes
        )
        for block in graph.scopes
        if block.kind == "dense block"
    }
    return {path: depth * (depth + 1) // 2 for path, depth in depths.items()}


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _window(layer: Layer) -> str:
    if layer.kernel is None:
        return ""
    stride = "" if layer.stride is None or layer.stride[0] == 1 else f" /{layer.stride[0]}"
    return _shape(layer.kernel) + stride


def _parameters(layer: Layer) -> str:
    return f"{layer.parameters:,}" if layer.parameters else ""


def _formula(layer: Layer) -> str:
    """How the number of parameters comes about: "3×3×3×24"."""
    return layer.formula.partition(" = ")[0]


def short_count(count: int) -> str:
    """Format a count with three significant digits: 1,234,567 → 1.23 M."""
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            scaled = count / 10**power
            return f"{scaled:.{max(2 - int(math.log10(scaled)), 0)}f} {letter}"
    return str(count) if count else ""


def _mib(count: int) -> str:
    return f"{count / MIB:,.2f}" if count else ""


def _pixels(count: int | None) -> str:
    return "all" if count is None else str(count)


_KEPT: dict[BlockExecution, str] = {
    "plain": "saved for the backward pass",
    "linear": "the same, linear execution",
    "linear-recompute": "the same, linear-recompute execution",
}

Column = tuple[str, bool, Callable[[Any], str]]

# Heading, whether it is right-aligned, and the text of a layer's cell.
_COLUMNS: tuple[Column, ...] = (
    ("layer", False, lambda layer: layer.path),
    ("kind", False, lambda layer: layer.kind),
    ("window", False, _window),
    ("input", False, lambda layer: _shape(layer.input)),
    ("output", False, lambda layer: _shape(layer.output)),
    ("parameters", True, _parameters),
    ("formula", False, _formula),
    ("MACs", True, lambda layer: short_count(layer.macs)),
    ("saved MiB", True, lambda layer: _mib(layer.kept)),
    ("receptive field", True, lambda layer: _pixels(layer.receptive_field)),
)
# What a narrow terminal does without, in this order.
_OPTIONAL = ("formula", "input", "kind")
_SHAPE = "shape"
# Columns of what only a graph tells.
_OF_GRAPHS = ("formula", "step", "receptive field")
_STAGE_COLUMNS: tuple[Column, ...] = (
    ("stage", False, lambda stage: stage.path),
    (_SHAPE, False, lambda stage: _shape(stage.shape)),
    ("step", True, lambda stage: "" if stage.step is None else str(stage.step)),
    ("receptive field", True, lambda stage: _pixels(stage.receptive_field)),
)


def _headings(columns: Sequence[Column]) -> dict[str, Literal["left", "right"]]:
    return {heading: "right" if right else "left" for heading, right, _ in columns}


def _markdown_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(heading for heading, _, _ in columns) + " |",
        "|" + "|".join("---:" if right else "---" for _, right, _ in columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
