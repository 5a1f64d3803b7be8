"""Panels of a network without a graph: its modules in order, and what reaches them from further up.

Lengths are inches on paper; y points up and a panel hangs down from its top.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.path import Path

from skipnets.errors import UserError
from skipnets.insight import panels
from skipnets.insight.module_layers import window
from skipnets.insight.panels import Panel, Strip
from skipnets.models.module_calls import Call, Connection, connections
from skipnets.models.operations import Shape

__all__ = ["ModulesPanel", "module_panels"]

# How many modules are drawn at most where their parts could be drawn instead.
_MOST = 40
_ROW = 0.34
_ARCS_WIDTH = 1.5
_PATH_WIDTH = 2.35
_RESULT_WIDTH = 1.2
# Of letters in plain and in bold type, on average.
_LETTER, _BOLD_LETTER = 0.07, 0.09


@dataclass(frozen=True, kw_only=True)
class ModulesPanel:
    """Modules in a column, with arcs beside them for what skips some of them.

    Attributes:
        title: Of the network, or of the module that they are inside of.
        map_size: Sides of the maps that they are given.
        rows: Path, description and output of each.
        arcs: Connections of other modules than neighbors.
    """

    title: str
    map_size: tuple[int, ...]
    rows: tuple[tuple[str, str, str], ...]
    arcs: tuple[Connection, ...]

    def height(self, width: float) -> float:  # noqa: ARG002
        """Height that the panel needs at a width."""
        return _ROW * len(self.rows) + 0.1

    def draw(self, axes: Axes, left: float, top: float, width: float) -> None:
        """Draw the panel below `top`, between `left` and `left + width`."""
        right = left + width - (_ARCS_WIDTH if self.arcs else 0)
        for number, (path, text, result) in enumerate(self.rows):
            middle = self._middle(top, number)
            box = FancyBboxPatch(
                (left, middle - 0.14),
                right - left,
                0.28,
                boxstyle="round,pad=0,rounding_size=0.06",
                fc="white",
                ec=panels.HAIRLINE,
                lw=0.8,
            )
            axes.add_patch(box)
            most = int((right - left - _PATH_WIDTH - _RESULT_WIDTH) / _LETTER)
            text = text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
            most = int((_PATH_WIDTH - 0.2) / _BOLD_LETTER)
            path = path if len(path) <= most else f"…{path[1 - most :]}"
            panels.write(axes, left + 0.1, middle, path, size=8.5, bold=True)
            panels.write(axes, left + _PATH_WIDTH, middle, text, size=8.5, color=panels.SOFT_INK)
            panels.write(axes, right - 0.1, middle, result, size=8.5, align="right")
        for lane, arc in zip(_lanes(self.arcs), self.arcs, strict=True):
            self._arc(axes, right, top, lane, arc)

    def _middle(self, top: float, number: int) -> float:
        return top - _ROW * (number + 0.5)

    def _arc(self, axes: Axes, x: float, top: float, lane: int, arc: Connection) -> None:
        """An arc from the lower edge of one box, or of the input above, to the upper edge of another."""
        start, end = self._middle(top, arc.source) - 0.07, self._middle(top, arc.target) + 0.07
        color = panels.SKIP_COLORS[arc.how]
        reach = x + _ARCS_WIDTH * min(0.22 + 0.16 * lane, 0.95) * 4 / 3
        path = Path([(x, start), (reach, start), (reach, end), (x, end)], [Path.MOVETO, *[Path.CURVE4] * 3])
        axes.add_collection(
            PathCollection([path], facecolors="none", edgecolors=color, linewidths=1.4, zorder=2)
        )
        axes.add_patch(Circle((x, end), 0.03, fc=color, ec="none", zorder=3))


def _lanes(arcs: Sequence[Connection]) -> list[int]:
    """How far out each arc reaches, so that arcs over the same modules do not cover one another."""
    order = sorted(range(len(arcs)), key=lambda place: arcs[place].target - arcs[place].source)
    lanes = [0] * len(arcs)
    for number, place in enumerate(order):
        arc = arcs[place]
        inner = [
            lanes[other]
            for other in order[:number]
            if arcs[other].source < arc.target and arc.source < arcs[other].target
        ]
        lanes[place] = max(inner, default=-1) + 1
    return lanes


def module_panels(calls: Sequence[Call], *, block: int | None = None) -> list[Panel]:
    """The input of a network, and its modules down to as many as can be read.

    Args:
        calls: From `record_calls`.
        block: Which of these modules to draw alone, with its own parts, counted from 1; None draws all.

    Raises:
        UserError: If there is no such module.
    """
    whole, shown = calls[0], _shown(calls)
    if block is not None:
        if not 1 <= block <= len(shown):
            raise UserError(
                f"block={block}: must be from 1 to {len(shown)}, the modules of {type(whole.module).__name__}"
            )
        whole = shown[block - 1]
        later = calls[calls.index(whole) + 1 :]
        inside = itertools.takewhile(lambda call: call.depth > whole.depth, later)
        shown = _shown([whole, *inside])
    found = connections(whole, shown)
    rows = [_row(call, whole) for call in shown]
    skipping = [each for each in found if each.target - each.source > 1]
    if any(each.target == len(shown) for each in skipping):  # a sum behind the last module, as in a block
        rows.append(("output", "", _text(whole.output)))
    title = whole.path or "input"
    return [
        Strip(map_size=whole.input[1:], title=title, text="", result=_text(whole.input)),
        ModulesPanel(title="modules", map_size=whole.input[1:], rows=tuple(rows), arcs=tuple(skipping)),
    ]


def _shown(calls: Sequence[Call]) -> list[Call]:
    """The calls inside the first one at the greatest depth that does not have too many."""
    whole, *inner = calls
    if not inner:
        return [whole]
    levels: list[list[Call]] = []
    for depth in range(whole.depth + 1, max(call.depth for call in inner) + 1):
        levels.append(
            [call for call in inner if call.depth == depth or (call.depth < depth and not call.parts)]
        )
    fitting = [level for level in levels if len(level) <= _MOST]
    return fitting[-1] if fitting else levels[0]


def _row(call: Call, whole: Call) -> tuple[str, str, str]:
    path = call.path.removeprefix(f"{whole.path}.") if call is not whole else call.path
    return path, _description(call), _text(call.output)


def _description(call: Call) -> str:
    """Class of a module with its window and stride; of one with parts, their classes."""
    name = type(call.module).__name__
    if not call.parts:
        return " ".join(filter(None, (_text(window(call, "kernel_size") or ()), name, _stride(call))))
    names = [type(child).__name__ for child in call.module.children()]
    runs = [(kind, len(list(group))) for kind, group in itertools.groupby(names)]
    inner = " → ".join(kind if count == 1 else f"{count}× {kind}" for kind, count in runs)
    return inner if name == "Sequential" else f"{name}: {inner}"


def _stride(call: Call) -> str:
    stride = window(call, "stride")
    return f"/{stride[0]}" if stride is not None and stride[0] > 1 else ""


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))
