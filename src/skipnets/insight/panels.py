"""Panels of a diagram, one for each stage of a network, drawn with matplotlib.

All lengths are inches on paper; y points up and a panel hangs down from its top. Colors are those of
perceptually even maps and of Okabe and Ito (2008), which color-blind people can tell apart.

Symbols: L layers of a dense block, k growth rate, d distance between neighboring layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.path import Path

INK = "#22272e"
SOFT_INK = "#5b6470"
HAIRLINE = "#c9ced6"
PALE = "#eef1f5"
INPUT_COLOR = "#7d8794"
SHORTCUT_COLORS = {"identity": "#0072b2", "projection": "#d55e00", "pad": "#009e73"}
# How features that skip modules are combined with others; "" where a module reads them alone.
SKIP_COLORS = {"addition": "#0072b2", "concatenation": "#d55e00", "product": "#009e73", "": "#7d8794"}

LABELS_WIDTH = 1.75
MARGIN = 0.15

Shortcut = Literal["identity", "projection", "pad"]
RGBA = tuple[float, float, float, float]

# With at least this distance between residual blocks, text fits into them.
_WIDE = 0.9


class Panel(Protocol):
    """Interface of a diagram's panels.

    Panels of equal map sizes are drawn side by side.
    """

    @property
    def map_size(self) -> tuple[int, ...]:
        """Height and width of its feature maps; the length of a signal's, the depth, too, of a volume's."""
        ...

    @property
    def title(self) -> str:
        """Name of the stage, such as "dense block 2"."""
        ...

    def height(self, width: float) -> float:
        """Height that the panel needs at a width."""
        ...

    def draw(self, axes: Axes, left: float, top: float, width: float) -> None:
        """Draw the panel below `top`, between `left` and `left + width`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A narrow panel: a few words on its layers, and the output shape."""

    map_size: tuple[int, ...]
    title: str
    text: str
    result: str

    def height(self, width: float) -> float:  # noqa: ARG002
        """Height that the panel needs at a width."""
        return 0.42

    def draw(self, axes: Axes, left: float, top: float, width: float) -> None:
        """Draw the panel below `top`, between `left` and `left + width`."""
        middle = top - self.height(width) / 2
        box = FancyBboxPatch(
            (left, middle - 0.14), width, 0.28, boxstyle="round,pad=0,rounding_size=0.06", fc=PALE, ec="none"
        )
        axes.add_patch(box)
        _write(axes, left + 0.1, middle, self.title, size=8.5, bold=True)
        _write(axes, left + LABELS_WIDTH, middle, self.text, size=8.5, color=SOFT_INK)
        _write(axes, left + width - 0.1, middle, self.result, size=8.5, align="right")


@dataclass(frozen=True, kw_only=True)
class DenseBlockPanel:
    """A dense block: its layers, an arc for each connection, and below it each layer's input channels.

    Attributes:
        title: For example "dense block 1".
        map_size: Height and width of its maps.
        channels: Channels of the block's input, then of each layer's output.
        largest_map: Height of the network's largest map, to draw map sizes to scale.
    """

    map_size: tuple[int, ...]
    title: str
    channels: tuple[int, ...]
    largest_map: int

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return len(self.channels) - 1

    def height(self, width: float) -> float:
        """Height that the panel needs at a width."""
        return self._arc_height(width) + self._node_size(width) + self._stack_height() + 0.5

    def draw(self, axes: Axes, left: float, top: float, width: float) -> None:
        """Draw the panel below `top`, between `left` and `left + width`."""
        self._label(axes, left, top)
        d = self._distance(width)
        start = left + LABELS_WIDTH + d / 2
        xs = [start + index * d for index in range(self.layers + 2)]
        colors = source_colors(self.layers)
        size = self._node_size(width)
        nodes_top = top - 0.12 - self._arc_height(width)
        self._arcs(axes, xs, nodes_top, width, colors)
        for index, (x, color) in enumerate(zip(xs[:-1], colors, strict=False)):
            self._node(axes, x, nodes_top, size, index, color)
        self._stacks(axes, xs, nodes_top - size - 0.1, d, colors)

    def _distance(self, width: float) -> float:
        """Distance between layers, with one position each for the block's input and output."""
        return min((width - LABELS_WIDTH - 0.12) / (self.layers + 2), 0.85)

    def _node_size(self, width: float) -> float:
        return min(0.26, 0.78 * self._distance(width))

    def _arc_height(self, width: float) -> float:
        return min(0.3 + 0.3 * self._distance(width) * self.layers, 0.62 + 0.028 * self.layers, 2.2)

    def _stack_height(self) -> float:
        return 0.55 + 0.006 * min(self.layers, 64)

    def _label(self, axes: Axes, left: float, top: float) -> None:
        connections = self.layers * (self.layers + 1) // 2
        _write(axes, left + 0.1, top - 0.2, self.title, size=10, bold=True)
        lines = (
            f"{self.layers} layers, each adds {self.channels[-1]}",
            f"{connections:,} connections",
            f"maps of {'×'.join(map(str, self.map_size))}",
        )
        for index, line in enumerate(lines):
            _write(axes, left + 0.1, top - 0.4 - 0.165 * index, line, size=8, color=SOFT_INK)
        _map_square(axes, left + 0.1, top - 0.9, self.map_size[0], self.largest_map)

    def _arcs(self, axes: Axes, xs: Sequence[float], y: float, width: float, colors: Sequence[RGBA]) -> None:
        """The L(L+1)/2 connections: from every source 0 … L−1 to every later layer."""
        tallest, longest = self._arc_height(width), max(self.layers, 1)
        paths, edges = [], []
        # Long arcs first, so that the short ones lie on top.
        for span in range(self.layers, 0, -1):
            # Control points of a cubic stand 4/3 as high as the curve rises.
            rise = 4 / 3 * tallest * (span / longest) ** 0.75
            for source in range(self.layers - span + 1):
                a, b = xs[source], xs[source + span]
                lean = 0.12 * (b - a)
                points = [(a, y), (a + lean, y + rise), (b - lean, y + rise), (b, y)]
                paths.append(Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]))
                edges.append(colors[source])
        thickness = min(1.5, max(0.35, 9 / self.layers))
        axes.add_collection(
            PathCollection(paths, facecolors="none", edgecolors=edges, linewidths=thickness, zorder=2)
        )

    def _node(self, axes: Axes, x: float, top: float, size: float, index: int, color: RGBA) -> None:
        box = FancyBboxPatch(
            (x - size / 2, top - size),
            size,
            size,
            boxstyle=f"round,pad=0,rounding_size={size * 0.22}",
            fc=color,
            ec="white",
            lw=0.5,
            zorder=3,
        )
        axes.add_patch(box)
        if size >= 0.13:
            label, points = ("in", 6.5) if index == 0 else (str(index), min(8.0, size * 34))
            red, green, blue, _ = color
            ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.62 else "white"
            if size >= 0.2 or index > 0:
                _write(axes, x, top - size / 2, label, size=points, color=ink, align="center", bold=True)

    def _stacks(self, axes: Axes, xs: Sequence[float], top: float, d: float, colors: Sequence[RGBA]) -> None:
        """Draw each layer's input channels below it, and the block's output channels at the end."""
        total = sum(self.channels)
        scale, bar = self._stack_height() / total, min(0.7 * d, 0.42)
        polygons, faces = [], []
        gap = 0.25 if self.layers <= 24 else 0.0
        every = max(math.ceil(0.34 / d), 1)
        received = 0
        for layer, x in enumerate(xs):
            if layer == 0:
                continue
            y = top
            for channels, color in zip(self.channels[:layer], colors, strict=False):
                low = y - channels * scale
                polygons.append([(x - bar / 2, y), (x + bar / 2, y), (x + bar / 2, low), (x - bar / 2, low)])
                faces.append(color)
                y = low
            received = sum(self.channels[:layer])
            last = layer == self.layers + 1
            if last or ((layer - 1) % every == 0 and (self.layers + 1 - layer) >= every):
                _write(axes, x, y - 0.085, f"{received}", size=7.5, align="center", bold=last, color=INK)
        axes.add_collection(
            PolyCollection(polygons, facecolors=faces, edgecolors="white", linewidths=gap, zorder=2)
        )
        _write(axes, xs[1] - bar / 2 - 0.07, top - 0.08, "channels in", size=7, color=SOFT_INK, align="right")
        _write(axes, xs[-1], top + 0.1, "out", size=7, color=SOFT_INK, align="center")


@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """One block of a residual stage.

    Attributes:
        shortcut: Kind of shortcut.
        branch: Convolutions of the branch, for example ("3×3 /2, 128", "3×3, 128").
        stride: Stride of the shortcut.
    """

    shortcut: Shortcut
    branch: tuple[str, ...]
    stride: int


@dataclass(frozen=True, kw_only=True)
class ResidualPanel:
    """A residual stage: its blocks in a row, each a branch below its shortcut.

    Attributes:
        title: For example "layer 1".
        map_size: Height and width of its blocks' outputs.
        channels: Channels of its blocks' outputs.
        blocks: In order.
        largest_map: Height of the network's largest map, to draw map sizes to scale.
    """

    map_size: tuple[int, ...]
    title: str
    channels: int
    blocks: tuple[ResidualBlock, ...]
    largest_map: int

    def height(self, width: float) -> float:
        """Height that the panel needs at a width."""
        return max(self._lines() * self._line_height(width) + 0.2, 1.1 + 0.7 * self._square())

    def draw(self, axes: Axes, left: float, top: float, width: float) -> None:
        """Draw the panel below `top`, between `left` and `left + width`."""
        self._label(axes, left, top, width)
        per_line, d = self._per_line(), self._distance(width)
        for index, block in enumerate(self.blocks):
            line, place = divmod(index, per_line)
            x = left + LABELS_WIDTH + place * d
            y = top - 0.1 - self._line_height(width) * (line + 1) + self._box_height(width) / 2 + 0.06
            self._block(axes, x, y, d, width, block)

    def _per_line(self) -> int:
        count = len(self.blocks)
        longest = count if count <= 12 else 18 if count <= 54 else 50
        return math.ceil(count / math.ceil(count / longest))

    def _lines(self) -> int:
        return math.ceil(len(self.blocks) / self._per_line())

    def _distance(self, width: float) -> float:
        return min((width - LABELS_WIDTH - 0.1) / self._per_line(), 1.3)

    def _box_height(self, width: float) -> float:
        return 0.15 * len(self.blocks[0].branch) + 0.1 if self._distance(width) >= _WIDE else 0.2

    def _arc_height(self, width: float) -> float:
        return min(0.3, 0.14 + 0.2 * self._distance(width))

    def _line_height(self, width: float) -> float:
        return self._box_height(width) + self._arc_height(width) + 0.2

    def _square(self) -> float:
        return _square_side(self.map_size[0], self.largest_map)

    def _label(self, axes: Axes, left: float, top: float, panel_width: float) -> None:
        _write(axes, left + 0.1, top - 0.2, self.title, size=10, bold=True)
        count = len(self.blocks)
        lines = [f"{count} block{'s' if count > 1 else ''}, {self.channels} channels"]
        lines += [f"maps of {'×'.join(map(str, self.map_size))}"]
        if self._distance(panel_width) < _WIDE:
            lines += [" → ".join(text.split(",")[0] for text in self.blocks[-1].branch)]
        for index, line in enumerate(lines):
            _write(axes, left + 0.1, top - 0.4 - 0.165 * index, line, size=8, color=SOFT_INK)
        _map_square(axes, left + 0.1, top - 0.4 - 0.165 * len(lines), self.map_size[0], self.largest_map)

    def _block(self, axes: Axes, x: float, y: float, d: float, width: float, block: ResidualBlock) -> None:
        color = SHORTCUT_COLORS[block.shortcut]
        plus, radius = x + 0.9 * d, min(0.075, 0.11 * d)
        low, high = x + 0.12 * d, x + 0.77 * d
        box_height, rise = self._box_height(width), self._arc_height(width) + self._box_height(width) / 2
        _line(axes, [x, low], [y, y], color=INK, width=0.9, zorder=1)
        _line(axes, [high, x + d], [y, y], color=INK, width=0.9, zorder=1)
        box = FancyBboxPatch(
            (low, y - box_height / 2),
            high - low,
            box_height,
            boxstyle=f"round,pad=0,rounding_size={min(0.05, 0.1 * d)}",
            fc=PALE,
            ec=SOFT_INK,
            lw=0.7,
            zorder=2,
        )
        axes.add_patch(box)
        if d >= _WIDE:
            points = min(7.5, 10.6 * (high - low))
            for index, text in enumerate(block.branch):
                offset = (len(block.branch) - 1) / 2 - index
                _write(axes, (low + high) / 2, y + 0.15 * offset, text, size=points, align="center")
        start, end = x + 0.05 * d, plus
        path = Path(
            [(start, y), (start, y + 4 / 3 * rise), (end, y + 4 / 3 * rise), (end, y + radius)],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        style = {"identity": "solid", "projection": (0, (4, 1.4)), "pad": (0, (1.2, 1.2))}[block.shortcut]
        axes.add_collection(
            PathCollection(
                [path], facecolors="none", edgecolors=color, linewidths=1.6, linestyles=[style], zorder=2
            )
        )
        axes.add_patch(Circle((start, y), 0.022, fc=INK, ec="none", zorder=3))
        if d >= _WIDE and block.shortcut == "projection":
            stride = f" /{block.stride}" if block.stride > 1 else ""
            middle = (start + end) / 2
            _write(
                axes,
                middle,
                y + rise + 0.085,
                f"{'×'.join('1' * len(self.map_size))}{stride}",
                size=7.5,
                color=color,
                align="center",
            )
        axes.add_patch(Circle((plus, y), radius, fc="white", ec=INK, lw=0.8, zorder=3))
        for dx, dy in ((radius * 0.6, 0), (0, radius * 0.6)):
            _line(axes, [plus - dx, plus + dx], [y - dy, y + dy], color=INK, width=0.8, zorder=4)


def source_colors(layers: int) -> list[RGBA]:
    """Colors for the input of a dense block and for each of its layers, in order."""
    colors = mpl.colormaps["plasma"]
    steps = [0.86 * index / max(layers - 1, 1) for index in range(layers)]
    return [mpl.colors.to_rgba(INPUT_COLOR), *(colors(step) for step in steps)]


def draw_legend(axes: Axes, left: float, y: float, kinds: Sequence[str]) -> None:
    """Draw the legend in one line; `kinds` are "dense", and the kinds of shortcuts or skips in use."""
    x = left + 0.1
    for kind in kinds:
        if kind == "dense":
            for index, color in enumerate(source_colors(6)):
                axes.add_patch(Rectangle((x + 0.09 * index, y - 0.05), 0.08, 0.1, fc=color, ec="none"))
            text, x = "color: the layer that made the features (gray: the block's input)", x + 0.72
        elif kind in SKIP_COLORS:
            _line(axes, [x, x + 0.4], [y, y], color=SKIP_COLORS[kind], width=1.4)
            text, x = kind or "read again", x + 0.48
        else:
            style = {"identity": "solid", "projection": (0, (4, 1.4)), "pad": (0, (1.2, 1.2))}[kind]
            _line(axes, [x, x + 0.4], [y, y], color=SHORTCUT_COLORS[kind], width=1.6, linestyle=style)
            text, x = _SHORTCUT_NAMES[kind], x + 0.48
        _write(axes, x, y, text, size=8, color=SOFT_INK)
        x += 0.062 * len(text) + 0.3


_SHORTCUT_NAMES = {
    "identity": "identity shortcut",
    "projection": "projection (1×1 convolution)",
    "pad": "every second pixel, zeros for new channels",
}


def _write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = INK,
    align: Literal["left", "center", "right"] = "left",
    bold: bool = False,
) -> None:
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, fontsize=size, color=color, ha=align, va="center_baseline", weight=weight, zorder=5)


def _line(axes: Axes, xs: list[float], ys: list[float], *, color: str, width: float, **style: Any) -> None:
    axes.add_line(Line2D(xs, ys, color=color, lw=width, **style))


write = _write


def _square_side(map_height: int, largest: int) -> float:
    return 0.12 + 0.4 * math.sqrt(map_height / largest)


def _map_square(axes: Axes, left: float, top: float, map_height: int, largest: int) -> None:
    """Draw a square for the map size; its side grows with the square root, so that small maps show."""
    side = _square_side(map_height, largest)
    axes.add_patch(Rectangle((left, top - side), side, side, fc="white", ec=HAIRLINE, lw=1.0))
    for step in (1, 2, 3):
        offset = side * step / 4
        _line(axes, [left + offset] * 2, [top - side, top], color=HAIRLINE, width=0.4)
        _line(axes, [left, left + side], [top - offset] * 2, color=HAIRLINE, width=0.4)
