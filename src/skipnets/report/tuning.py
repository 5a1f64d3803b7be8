"""Write the page on a tuning: its trials as a table and in charts, one self-contained HTML file."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from skipnets.duration import format_duration
from skipnets.errors import UserError, check_path
from skipnets.files import atomic_path
from skipnets.report.charts import C1, C2, INK, SOFT, SURFACE, chart
from skipnets.report.rendering import render
from skipnets.training.tuning.trials import TrialRecord, importances, load_study
from skipnets.training.tuning.tuning import Tuning

__all__ = ["write_tuning_report"]

PAGE = "trials.html"
# More names than these would not stand beside one another on a phone.
_NAMES_IN_A_ROW = 4

_TITLES = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "augmentation": "augmentation",
    "model": "network",
}


def write_tuning_report(
    tuning: str | os.PathLike[str] | Tuning, output: str | os.PathLike[str] | None = None
) -> Path:
    """Write the page on a tuning.

    Args:
        tuning: Its folder, or what `skipnets.training.tune` returns.
        output: An HTML file; None uses `trials.html` in the folder.

    Returns:
        The path of the file.

    Raises:
        UserError: If the folder holds no tuning with a trial, or the file cannot be written.
    """
    if not isinstance(tuning, Tuning):
        check_path("tuning", tuning, " or a Tuning")
        tuning = Tuning(Path(tuning))
    path = tuning.folder / PAGE if output is None else Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={path}: must end in .html")
    page = _page(tuning)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _page(tuning: Tuning) -> str:
    trials, best = tuning.trials, tuning.best
    if best is None:
        raise UserError(f"{tuning.folder}: no trial is complete yet")
    minimize = tuning.minimize
    options = list(dict.fromkeys(name for trial in trials for name in trial.values))
    shares = importances(load_study(tuning.folder))
    base = tuning.base
    counts = {
        state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")
    }
    seconds = sum(trial.seconds for trial in trials if math.isfinite(trial.seconds))
    return render(
        "tuning.html.jinja",
        title=Path(base.data).name or base.data,
        metric=tuning.metric,
        best=best,
        default=trials[0],
        counts=counts,
        total=len(trials),
        trial_time=f"{base.time} each" if base.time else f"{base.epochs} epochs each",
        seconds=format_duration(seconds),
        options=[_TITLES.get(name, name) for name in options],
        best_values=[(_TITLES.get(name, name), _cell(value)) for name, value in best.values.items()],
        rows=[
            {
                "trial": trial,
                "cells": [_cell(trial.values.get(name)) for name in options],
                "best": trial.number == best.number,
            }
            for trial in sorted(trials, key=lambda trial: _rank(trial, minimize=minimize))
        ],
        failed=[trial for trial in trials if trial.state == "failed"],
        history=_history(trials, minimize=minimize, metric=tuning.metric),
        importances=[(_TITLES.get(name, name), share) for name, share in shares.items()],
        parallel=_parallel(trials, options, best, metric=tuning.metric),
        command=f"skipnets train --config {tuning.config_file}",
        folder=str(tuning.folder),
        version=importlib.metadata.version("skipnets"),
        written=datetime.now(UTC).isoformat(timespec="minutes"),
    )


def _rank(trial: TrialRecord, *, minimize: bool) -> tuple[int, float]:
    """Complete trials first, the best at the top."""
    order = {"complete": 0, "pruned": 1}.get(trial.state, 2)
    value = 0.0 if trial.value is None else trial.value
    return order, value if minimize else -value


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _svg(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - drawn here, from numbers and names of options


def _history(trials: Sequence[TrialRecord], *, minimize: bool, metric: str) -> dict[str, Markup]:
    """The value of each trial, in their order, and the best so far."""

    def draw(axes: Axes) -> None:
        best: list[float] = []
        for trial in trials:
            if trial.value is not None and trial.state == "complete":
                best.append((min if minimize else max)([*best[-1:], trial.value]))
            else:
                best.append(best[-1] if best else math.nan)
        axes.plot([trial.number for trial in trials], best, color=C2, drawstyle="steps-post", linewidth=1.4)
        for state, face, edge in (("complete", C1, C1), ("pruned", SURFACE, SOFT)):
            shown = {
                trial.number: trial.value
                for trial in trials
                if trial.state == state and trial.value is not None
            }
            axes.scatter(list(shown), list(shown.values()), s=26, zorder=3, facecolor=face, edgecolor=edge)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"validation {metric}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))

    return {
        "wide": _svg(chart("history", draw, (9.6, 3.2))),
        "narrow": _svg(chart("history-narrow", draw, (4.2, 2.9))),
    }


def _parallel(
    trials: Sequence[TrialRecord], options: Sequence[str], best: TrialRecord, *, metric: str
) -> dict[str, Markup]:
    """Parallel coordinates: a line a trial, an axis an option, and the value at the right.

    On narrow screens the axes lie one below the other, the value at the bottom.
    """
    shown = [trial for trial in trials if trial.value is not None]
    scales = [
        _Scale([trial.values.get(name) for trial in shown], log=name in ("lr", "weight_decay"))
        for name in options
    ]
    scales.append(_Scale([trial.value for trial in shown], log=False))

    titles = [*(_TITLES.get(name, name) for name in options), metric]
    label: dict[str, Any] = {
        "fontsize": 8.5,
        "color": INK,
        "textcoords": "offset points",
        "bbox": {"facecolor": SURFACE, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
    }

    def draw_lines(axes: Axes, *, downward: bool) -> None:
        for trial in sorted(shown, key=lambda trial: trial.number == best.number):
            values = [*(trial.values.get(name) for name in options), trial.value]
            line = [scale(value) for scale, value in zip(scales, values, strict=True)]
            style: dict[str, Any] = {"color": SOFT, "alpha": 0.4, "linewidth": 0.9}
            if trial.state == "complete":
                style = {"color": C1, "alpha": 0.55, "linewidth": 1.2}
            if trial.number == best.number:
                style = {"color": C2, "alpha": 1.0, "linewidth": 2.4}
            axes.plot(*((line, range(len(line))) if downward else (range(len(line)), line)), **style)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)

    def draw(axes: Axes) -> None:
        draw_lines(axes, downward=False)
        for position, scale in enumerate(scales):
            axes.axvline(position, color=SOFT, linewidth=0.8)
            for at, text in scale.ticks():
                axes.annotate(text, (position, at), xytext=(4, 0), va="center", **label)
        axes.set_xticks(range(len(scales)), titles)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(scales) - 0.55)
        axes.set_ylim(-0.06, 1.06)

    def draw_downward(axes: Axes) -> None:
        draw_lines(axes, downward=True)
        for position, (scale, title) in enumerate(zip(scales, titles, strict=True)):
            axes.axhline(position, color=SOFT, linewidth=0.8)
            axes.annotate(
                title, (0, position), xytext=(0, 6), **label | {"color": SOFT, "fontsize": 9}, zorder=4
            )
            ticks = scale.ticks()
            for number, (at, text) in enumerate(ticks):
                # Many names stand in two rows.
                below = -11 if len(ticks) <= _NAMES_IN_A_ROW or number % 2 == 0 else -21
                side = "left" if at == 0 else "right" if at == 1 else "center"
                axes.annotate(text, (at, position), xytext=(0, below), ha=side, **label)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(len(scales) - 0.6, -0.3)

    return {
        "wide": _svg(chart("parallel", draw, (11.0, 4.2))),
        "narrow": _svg(chart("parallel-narrow", draw_downward, (4.2, 1.05 * len(scales)))),
    }


class _Scale:
    """From the values of an option to heights from 0 to 1."""

    def __init__(self, values: Sequence[Any], *, log: bool) -> None:
        self.numbers = all(isinstance(value, int | float) for value in values) and log | all(
            isinstance(value, float) for value in values
        )
        self.log = log
        self.values = sorted(set(values), key=lambda value: (str(type(value)), value))

    def __call__(self, value: Any) -> float:
        if not self.numbers:
            return self._share(self.values.index(value), 0, len(self.values) - 1)
        low, high = self.values[0], self.values[-1]
        if self.log:
            return self._share(math.log(value), math.log(low), math.log(high))
        return self._share(value, low, high)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights with their labels: of every category, or of the limits and what lies between."""
        if not self.numbers:
            return [(self(value), str(value)) for value in self.values]
        low, high = self.values[0], self.values[-1]
        middle = math.sqrt(low * high) if self.log else (low + high) / 2
        return [(self(value), f"{value:.3g}") for value in dict.fromkeys((low, middle, high))]

    @staticmethod
    def _share(value: float, low: float, high: float) -> float:
        return 0.5 if high == low else (value - low) / (high - low)
