"""The figures of the documentation, one function each: their numbers come from the library or from docs/data.

`python docs/drawings.py` writes them into docs/guide/figures.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from torchvision.models import regnet_y_400mf

from skipnets import create_model
from skipnets.insight.diagram import draw_diagram

DOCS = Path(__file__).parent
FIGURES = DOCS / "guide" / "figures"
NAMES = (
    "dense-block", "dense-block-for-cifar", "residual-stage", "whole-network", "own-network",
    "channels", "layer-cost", "accuracy", "accuracy-speed", "spread", "selection",
)  # fmt: skip

# It becomes `currentColor`: the text color of the site where a figure stands in a page, and that of _STYLE
# where it is an image of its own, as in the repository.
_INK = "#010203"
_STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
# These are told from both grounds, and from one another with every kind of color vision.
BLUE, ORANGE, GREEN, GRAY = "#2f86d0", "#d9661f", "#1f9d74", "#868e99"


def svg(name: str) -> str:
    """The figure of this name, `dense-block` for `dense_block()`, as SVG."""
    drawn: Figure | str = globals()[name.replace("-", "_")]()
    if isinstance(drawn, str):
        return drawn
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    found = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    return re.sub(r"(<svg [^>]*>)", rf"\1{_STYLE}", found.replace(_INK, "currentColor"), count=1)


@contextmanager
def _chart(*, width: float = 7.2, height: float = 3.9) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, inches wide and high, in the style of all of them."""
    style: dict[str, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "legend.frameon": False,
        "lines.linewidth": 2,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=_INK, alpha=0.13, linewidth=0.8)
        axes.set_axisbelow(True)
        yield figure, axes


def dense_block() -> str:
    """The first block of DenseNet-121 with its 21 connections."""
    return _diagram("densenet121", block=1)


def residual_stage() -> str:
    """The second stage of ResNet-20."""
    return _diagram("resnet20", block=2)


def dense_block_for_cifar() -> str:
    """The second block of a DenseNet for images of the same size."""
    return _diagram("densenet_bc40_k12", block=2)


def whole_network() -> str:
    """A DenseNet for small images, from the input to the classes."""
    return _diagram("densenet_bc40_k12")


def own_network() -> str:
    """A block of a network that is no part of the package, with its gate and its shortcut."""
    return _diagram(regnet_y_400mf(), input_size=224, block=6)


def channels() -> Figure:
    """How many channels the maps have along DenseNet-121."""
    config = create_model("densenet121").config
    assert config.stem_channels is not None
    places, counts = [0], [config.stem_channels]
    edges = []
    for number, layers in enumerate(config.block_config, start=1):
        for _ in range(layers):
            places.append(places[-1] + 1)
            counts.append(counts[-1] + config.growth_rate)
        edges.append((places[-1], counts[-1]))
        if number < len(config.block_config):
            places.append(places[-1] + 1)
            counts.append(config.compressed(counts[-1]))
    with _chart(height=3.4) as (figure, axes):
        axes.plot(places, counts, color=BLUE, marker="o", markersize=2.5)
        for number, (place, count) in enumerate(edges, start=1):
            axes.annotate(
                f"block {number}\n{count}", (place, count), (-4, 6), textcoords="offset points", ha="right"
            )
        axes.set(xlabel="dense layers and transitions, in order", ylabel="channels", ylim=(0, 1150))
    return figure


def layer_cost() -> Figure:
    """Weights of one dense layer against the channels that it sees, with and without a bottleneck."""
    growth_rate = 32
    seen = np.arange(0, 1025)
    plain = 9 * seen * growth_rate
    bottleneck = 4 * growth_rate * seen + 9 * 4 * growth_rate * growth_rate
    with _chart(height=3.4) as (figure, axes):
        axes.plot(seen, plain / 1e3, color=ORANGE)
        axes.plot(seen, bottleneck / 1e3, color=BLUE)
        axes.annotate("3×3 on all channels\n9·C·k", (640, 9 * 640 * 32 / 1e3), (-8, 8), **_beside("right"))
        axes.annotate(
            "1×1 to 4k, then 3×3\n4·C·k + 36·k²",
            (760, (4 * 32 * 760 + 36 * 1024) / 1e3),
            (8, -30),
            **_beside(),
        )
        axes.axvline(7.2 * growth_rate, color=_INK, alpha=0.5, linewidth=1, linestyle="--")
        axes.annotate("C = 7.2 k", (7.2 * growth_rate, 250), (5, 0), **_beside())
        axes.set(
            xlabel=f"channels C that the layer sees (k = {growth_rate})",
            ylabel="thousand weights",
            xlim=(0, 1024),
            ylim=(0, 300),
        )
    return figure


def accuracy() -> Figure:
    """Test accuracy against parameters, from docs/data/accuracy.json."""
    runs = json.loads((DOCS / "data" / "accuracy.json").read_text(encoding="utf-8"))["runs"]
    looks = {
        "DenseNet-BC": (BLUE, "o"),
        "DenseNet-B": (GREEN, "D"),
        "DenseNet": (ORANGE, "s"),
        "ResNet": (GRAY, "^"),
    }
    with _chart(height=4.6) as (figure, axes):
        for kind in dict.fromkeys(run["kind"] for run in runs):
            color, marker = looks[kind]
            of_kind = sorted(
                (run for run in runs if run["kind"] == kind), key=lambda run: int(run["parameters"])
            )
            sizes = [run["parameters"] for run in of_kind]
            scores = [100 * run["accuracy"] for run in of_kind]
            line = "" if kind == "ResNet" else "-"
            axes.plot(sizes, scores, marker=marker, linestyle=line, color=color, label=kind, markersize=7)
            for run, size, score in zip(of_kind, sizes, scores, strict=True):
                low, high = run["accuracy_interval"]
                axes.plot([size, size], [100 * low, 100 * high], color=color, alpha=0.4, linewidth=3)
                axes.annotate(run["label"], (size, score), (7, -13), textcoords="offset points", fontsize=8.5)
        axes.set_xscale("log")
        axes.set_xlim(right=6e5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="parameters", ylabel="test accuracy in %")
        axes.legend(loc="lower right")
    return figure


def accuracy_speed() -> Figure:
    """Published accuracy against measured speed, from docs/data/speed.json; a line joins the best."""
    networks = json.loads((DOCS / "data" / "speed.json").read_text(encoding="utf-8"))["networks"]
    looks = {
        "DenseNet": (BLUE, "o"),
        "RDNet": (BLUE, "*"),
        "ResNet": (GRAY, "^"),
        "ResNet-D": (GREEN, "s"),
        "ResNet with attention": (GREEN, "P"),
        "pre-activation ResNet": (GREEN, "D"),
        "RegNetX": (ORANGE, "X"),
        "RegNetY": (ORANGE, "v"),
    }
    by_speed = sorted(networks, key=lambda row: -row["images_per_second"])
    best = [
        row
        for number, row in enumerate(by_speed)
        if all(row["top1"] > faster["top1"] for faster in by_speed[:number])
    ]
    named = {row["name"] for row in best} | {"densenet121", "densenet161", "resnet50"}
    with _chart(height=5.2) as (figure, axes):
        axes.plot(
            [row["images_per_second"] for row in best],
            [row["top1"] for row in best],
            color=_INK,
            alpha=0.35,
            linewidth=1.5,
        )
        for family, (color, marker) in looks.items():
            own = [row for row in networks if row["family"] == family]
            axes.plot(
                [row["images_per_second"] for row in own],
                [row["top1"] for row in own],
                marker=marker,
                markersize=11 if marker == "*" else 7,
                linestyle="",
                color=color,
                label=family,
            )
        below = ((0, -14), "center")
        places = {
            "densenet121": below,
            "densenet161": below,
            "resnet50": ((-8, -4), "right"),
            "regnety_032": ((7, -3), "left"),
            "regnety_040": ((6, 5), "left"),
        }
        for row in (row for row in networks if row["name"] in named):
            offset, align = places.get(row["name"], ((7, 4), "left"))
            axes.annotate(
                row["name"],
                (row["images_per_second"], row["top1"]),
                offset,
                fontsize=8.5,
                **_beside(align),
            )
        axes.set_xscale("log")
        axes.set_xlim(right=2.2 * by_speed[0]["images_per_second"])
        axes.set_xticks([5, 10, 20, 50, 100, 200])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="images a second of one thread", ylabel="published top-1 accuracy in %")
        axes.legend(loc="lower left", fontsize=8.5)
    return figure


def spread() -> Figure:
    """What adding and concatenating do to the size of the features of an untrained network."""
    from skipnets.models.densenet import DenseLayer
    from skipnets.models.resnet import BasicBlock

    torch.manual_seed(0)
    sizes: dict[str, list[float]] = {"sum": [], "new": []}

    def note(kind: str) -> Any:
        return lambda _module, _inputs, output: sizes[kind].append(float(output.std()))

    residual = create_model("resnet110")
    dense = create_model("densenet_bc100_k12", block_config=[18, 18, 18])
    for module in residual.modules():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(note("sum"))
    for module in dense.modules():
        if isinstance(module, DenseLayer):
            module.register_forward_hook(note("new"))
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        residual(images)
        dense(images)
    with _chart(height=3.4) as (figure, axes):
        axes.plot(range(1, 55), sizes["sum"], color=GRAY)
        axes.plot(range(1, 55), sizes["new"], color=BLUE)
        axes.annotate(
            "ResNet-110: the sum after each block", (30, sizes["sum"][29]), (-10, 34), **_beside("center")
        )
        axes.annotate(
            "DenseNet: the k maps that each layer adds", (30, sizes["new"][29]), (0, -16), **_beside("center")
        )
        axes.set(xlabel="block or layer", ylabel="standard deviation", xlim=(0, 55), ylim=(0, 4.2))
    return figure


def selection() -> Figure:
    """By how much a test score is too good if the test images chose the epoch."""
    sys.path.insert(0, str(DOCS.parent / "tests" / "docs"))
    from selection import simulate

    epochs = [1, 2, 5, 10, 20, 50, 100]
    with _chart(height=3.4) as (figure, axes):
        for images, color in ((200, ORANGE), (1000, BLUE), (5000, GRAY)):
            found = [simulate(epochs=count, images=images, trials=240_000 // images) for count in epochs]
            axes.plot(epochs, [100 * of.by_test for of in found], color=color, marker="o", markersize=4)
            axes.annotate(
                f"{images:,} test images", (100, 100 * found[-1].by_test), (-4, 6), **_beside("right")
            )
        axes.axhline(0, color=_INK, linewidth=1, alpha=0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="epochs to choose from", ylabel="points too high", ylim=(-0.1, None))
    return figure


def _beside(align: str = "left") -> dict[str, Any]:
    return {"textcoords": "offset points", "ha": align}


def _diagram(models: Any, **options: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return draw_diagram(models, output=Path(folder, "diagram.svg"), **options).read_text(encoding="utf-8")


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for figure_name in NAMES:
        (FIGURES / f"{figure_name}.svg").write_text(svg(figure_name), encoding="utf-8")
