"""Drawings of networks: dense blocks with every connection, residual stages with every shortcut.

Dense blocks are drawn after figure 1 of the DenseNet paper (arXiv 1608.06993), residual blocks after figure 3
of the ResNet paper (arXiv 1512.03385), networks without a graph as their modules, with arcs for what skips
some of them. Lengths are inches on paper.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipnets.errors import UserError, needs_extra
from skipnets.files import atomic_path
from skipnets.insight.layers import Layer, inside, layers
from skipnets.insight.source import Source, architecture_of
from skipnets.insight.summary import short_count
from skipnets.models.graph import Graph
from skipnets.models.module_calls import record_calls
from skipnets.models.operations import Convolution, Linear

with needs_extra("train"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from skipnets.insight import panels
    from skipnets.insight.module_drawing import ModulesPanel, module_panels
    from skipnets.insight.panels import DenseBlockPanel, Panel, ResidualBlock, ResidualPanel, Strip

FORMATS = (".svg", ".png", ".pdf")
WIDTH = 9.6
WIDTH_BESIDE = 7.6
PIXELS_PER_INCH = 160
_HEADER = 0.62
_GAP = 0.06
_CONVOLUTIONS = ("convolution", "standardized convolution")


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """One model's column.

    Attributes:
        title: The model's name.
        subtitle: Its depth if that is known, parameters and MACs.
        panels: From the input to the logits.
        legend: Kinds of elements that the legend explains.
    """

    title: str
    subtitle: str
    panels: tuple[Panel, ...]
    legend: tuple[str, ...]


def draw_diagram(
    sources: Source | list[Source],
    *,
    output: str | os.PathLike[str],
    block: int | None = None,
    input_size: int | tuple[int, ...] | None = None,
    **fields: Any,
) -> Path:
    """Draw a diagram of one or more networks, or of one of their blocks, to a file.

    Args:
        sources: A registry name, a model file, a run folder, a configuration, a module or a classifier; or
            several of them, which are drawn side by side, stages of equal map size at the same height. A
            network without a graph is run, as `summarize` does.
        output: An .svg, .png or .pdf file.
        block: Which dense block or residual stage to draw alone, counted from 1; of a network without a
            graph, which of the modules that are drawn. None draws all.
        input_size: Height and width of the images, or as many sides as the input has; None uses each model's
            default size. A module that is no part of this package needs one.
        fields: Configuration fields to replace; for registry names, and `in_chans` of a module.

    Returns:
        The path of the file.

    Raises:
        UserError: For an unknown model, block or format.
    """
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"output={path}: must end in {', '.join(FORMATS)}")
    several = sources if isinstance(sources, list) else [sources]
    if not several:
        raise UserError("sources: must name at least one")
    drawings = [_drawing(source, block, input_size, fields) for source in several]
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "skipnets"}):
        figure = _figure(drawings)
        with atomic_path(path) as temporary:
            no_date = {"Date": None} if path.suffix.lower() == ".svg" else {}
            figure.savefig(temporary, dpi=PIXELS_PER_INCH, metadata=no_date)
    return path


def _drawing(
    source: Source, block: int | None, input_size: int | tuple[int, ...] | None, fields: dict[str, Any]
) -> _Drawing:
    architecture = architecture_of(source, **fields)
    size = architecture.image_size(input_size)
    if architecture.network is not None:
        calls = record_calls(architecture.network, (architecture.config.in_chans, *size))
        modules = module_panels(calls, block=block)
        skips = {arc.how for panel in modules if isinstance(panel, ModulesPanel) for arc in panel.arcs}
        return _Drawing(
            title=architecture.config.name,
            subtitle=f"{calls[0].parameters:,} parameters · {short_count(calls[0].macs)} MACs",
            panels=tuple(modules),
            legend=tuple(kind for kind in panels.SKIP_COLORS if kind in skips),
        )
    graph = architecture.graph
    rows = layers(graph, size)
    all_panels = _panels(rows)
    if block is not None:
        blocks = [panel for panel in all_panels if not isinstance(panel, Strip)]
        if not 1 <= block <= len(blocks):
            raise UserError(f"block={block}: must be from 1 to {len(blocks)} for {graph.name}")
        all_panels = [blocks[block - 1]]
    macs = sum(layer.macs for layer in rows if layer.depth == 1)
    shortcuts = {
        residual.shortcut
        for panel in all_panels
        if isinstance(panel, ResidualPanel)
        for residual in panel.blocks
    }
    return _Drawing(
        title=graph.name,
        subtitle=f"{_depth(graph)} layers deep · {graph.parameter_count():,} parameters · "
        f"{short_count(macs)} MACs",
        panels=tuple(all_panels),
        legend=(
            *(["dense"] if any(isinstance(panel, DenseBlockPanel) for panel in all_panels) else []),
            *(kind for kind in ("identity", "projection", "pad") if kind in shortcuts),
        ),
    )


def _figure(drawings: Sequence[_Drawing]) -> Figure:
    width = WIDTH if len(drawings) == 1 else WIDTH_BESIDE
    tops = _tops(drawings, width)
    bottom = min(
        top - panel.height(width)
        for drawing, column in zip(drawings, tops, strict=True)
        for panel, top in zip(drawing.panels, column, strict=True)
    )
    margin, gap = panels.MARGIN, 0.45
    whole_width = len(drawings) * width + (len(drawings) - 1) * gap + 2 * margin
    legend_height = 0.36
    whole_height = _HEADER - bottom + legend_height + 2 * margin
    figure = Figure(figsize=(whole_width, whole_height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-margin, whole_width - margin)
    axes.set_ylim(bottom - legend_height - margin, _HEADER + margin)
    for index, (drawing, column) in enumerate(zip(drawings, tops, strict=True)):
        left = index * (width + gap)
        panels.write(axes, left + 0.1, _HEADER - 0.12, drawing.title, size=15, bold=True)
        panels.write(axes, left + 0.1, _HEADER - 0.38, drawing.subtitle, size=9, color=panels.SOFT_INK)
        for panel, top in zip(drawing.panels, column, strict=True):
            panel.draw(axes, left, top, width)
        panels.draw_legend(axes, left, bottom - legend_height + 0.1, drawing.legend)
    return figure


def _tops(drawings: Sequence[_Drawing], width: float) -> list[list[float]]:
    """Top of each panel; panels of a shared map size start at the same height, heads too."""

    def level_of(panel: Panel) -> tuple[tuple[int, ...], bool]:
        return panel.map_size, panel.title != "head"

    columns = [
        [list(group) for _, group in itertools.groupby(drawing.panels, key=level_of)] for drawing in drawings
    ]
    sizes = sorted({level_of(group[0]) for column in columns for group in column}, reverse=True)
    tops: list[list[float]] = [[] for _ in drawings]
    levels = [0.0] * len(columns)
    for size in sizes:
        found = {
            number: [panel for group in column if level_of(group[0]) == size for panel in group]
            for number, column in enumerate(columns)
            if any(level_of(group[0]) == size for group in column)
        }
        level = min(levels[number] for number in found)
        for number, group in found.items():
            top = level
            for panel in group:
                tops[number].append(top)
                top -= panel.height(width) + _GAP
            levels[number] = top
    return tops


def _depth(graph: Graph) -> int:
    """Number of convolutions and linear layers from input to logits, as the papers count depth."""
    aside = ("shortcut", "squeeze-excitation")
    shortcuts = [range(scope.start, scope.stop) for scope in graph.scopes if scope.kind in aside]
    return sum(
        isinstance(operation, Convolution | Linear) and not any(place in scope for scope in shortcuts)
        for place, operation in enumerate(graph.operations)
    )


def _panels(rows: Sequence[Layer]) -> list[Panel]:
    """Panels for the stages of a network, in order; layers between blocks are grouped into strips."""
    largest = max(layer.output[1] for layer in rows if layer.kind in ("dense block", "stage"))
    result: list[Panel] = []
    ungrouped: list[Layer] = []
    _, *sides = image = rows[0].input
    given = {1: "a signal", 2: "an image", 3: "a volume"}[len(sides)]
    result.append(Strip(map_size=tuple(sides), title="input", text=given, result=_text(image)))
    numbers: Counter[str] = Counter()
    for layer in (layer for layer in rows if layer.depth == 1):
        numbers[layer.kind] += 1
        title = f"{layer.kind} {numbers[layer.kind]}"
        if layer.kind == "transition":
            result.append(_transition(layer, inside(rows, layer), title))
        elif layer.kind in ("dense block", "stage"):
            blocks = numbers[layer.kind]
            result += _strips(ungrouped, "stem" if blocks == 1 else f"transition {blocks - 1}")
            ungrouped = []
            panel = _dense_panel if layer.kind == "dense block" else _residual_panel
            result.append(panel(rows, layer, title, largest))
        else:
            ungrouped.append(layer)
    result += _strips(ungrouped, "head")
    return result


def _strips(layers: Sequence[Layer], title: str) -> list[Panel]:
    if not layers:
        return []
    words = [word for word in map(_word, layers) if word]
    first = next(layer for layer in layers if len(layer.input) > 1)
    size = (first.input if title == "head" else layers[-1].output)[1:]
    return [
        Strip(
            map_size=size,
            title=title,
            text=" → ".join(words),
            result=_text(layers[-1].output) + (" classes" if title == "head" else ""),
        )
    ]


def _transition(layer: Layer, parts: Sequence[Layer], title: str) -> Strip:
    words = [word for word in map(_word, parts) if word]
    return Strip(
        map_size=layer.output[1:],
        title=title,
        text=" → ".join(words),
        result=f"{_text(layer.input)} → {_text(layer.output)}",
    )


def _dense_panel(rows: Sequence[Layer], layer: Layer, title: str, largest: int) -> DenseBlockPanel:
    return DenseBlockPanel(
        map_size=layer.output[1:],
        title=title,
        channels=(layer.input[0], *(inner.output[0] for inner in inside(rows, layer))),
        largest_map=largest,
    )


def _residual_panel(rows: Sequence[Layer], layer: Layer, title: str, largest: int) -> ResidualPanel:
    blocks = []
    for block in inside(rows, layer):
        parts = inside(rows, block)
        blocks.append(
            ResidualBlock(
                shortcut=_shortcut(parts),
                branch=tuple(map(_tag, _convolutions(rows, parts))),
                stride=block.input[1] // block.output[1],
            )
        )
    return ResidualPanel(
        map_size=layer.output[1:],
        title=title,
        channels=layer.output[0],
        blocks=tuple(blocks),
        largest_map=largest,
    )


def _convolutions(rows: Sequence[Layer], parts: Sequence[Layer]) -> list[Layer]:
    """Those of a block's branch."""
    found: list[Layer] = []
    for part in parts:
        if part.kind in _CONVOLUTIONS:
            found.append(part)
        elif part.kind == "convolutions":
            found += _convolutions(rows, inside(rows, part))
    return found


def _shortcut(parts: Sequence[Layer]) -> panels.Shortcut:
    for part in parts:
        if part.kind == "shortcut":
            return "projection" if part.parameters else "pad"
    return "identity"


def _word(layer: Layer) -> str:
    kernel = f"{_text(layer.kernel)} " if layer.kernel else ""
    stride = f" /{layer.stride[0]}" if layer.stride and layer.stride[0] > 1 else ""
    names = {
        **dict.fromkeys(_CONVOLUTIONS, f"{kernel}conv{stride}"),
        "batch norm": "norm",
        "layer norm": "norm",
        "group norm": "norm",
        "instance norm": "norm",
        "filter-response norm": "norm",
        "max pooling": f"{kernel}max-pool{stride}",
        "average pooling": f"{kernel}avg-pool{stride}",
        "global average": "average",
    }
    return names.get(layer.kind, layer.kind)


def _tag(convolution: Layer) -> str:
    """A convolution as a short label: "3×3 /2, 128"."""
    assert convolution.kernel is not None
    assert convolution.stride is not None
    stride = f" /{convolution.stride[0]}" if convolution.stride[0] > 1 else ""
    return f"{_text(convolution.kernel)}{stride}, {convolution.output[0]}"


def _text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
