"""How a trained network uses its skip connections: which features layers read, what branches add.

For dense blocks this is figure 5 of the DenseNet paper (arXiv 1608.06993), computed from the weights. What a
residual branch adds depends on the input, so it is measured on images.

Symbols: C₀ channels of a dense block's input, k growth rate, L layers of the block.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipnets.classifier import Classifier, as_classifier
from skipnets.data.preprocessing import ImageDecodeError
from skipnets.errors import UserError, needs_extra
from skipnets.files import atomic_path
from skipnets.inputs import named_sources
from skipnets.models.backbone import Backbone
from skipnets.models.family import network_graph
from skipnets.models.graph import Graph, Scope
from skipnets.models.modes import evaluating, sharing_tensors
from skipnets.models.operations import Add, Convolution, Linear, Operation, Pad
from skipnets.models.registry import config_from_dict
from skipnets.runtimes.torch import without_lost_threads

with needs_extra("train"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

if TYPE_CHECKING:
    from skipnets.data.decoding import Source
    from skipnets.inputs import Images

FORMATS = (".png", ".svg", ".pdf")
_CELL = 0.17  # inches
_TITLE_WIDTH = 5.4  # inches
_INK = "#22272e"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class BlockReuse:
    """How strongly each layer of a dense block uses the features of earlier layers.

    Attributes:
        block: Path of the block in the model.
        sources: "input", then the layers that make features.
        targets: The layers that read them, and last the transition or classifier that reads the whole block.
        strength: (sources, targets): the L1 norm of the target's weights on a source's feature maps, divided
            by the number of these maps; NaN where the source comes after the target.
    """

    block: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    strength: NDArray[np.float64]

    def relative(self) -> NDArray[np.float64]:
        """`strength` divided by each target's largest: 1 marks the source it uses most."""
        largest: NDArray[np.float64] = np.nanmax(self.strength, axis=0, keepdims=True)
        return self.strength / np.where(largest > 0, largest, 1)


@dataclass(frozen=True, kw_only=True)
class DenseReuse:
    """Feature reuse in a network of dense blocks."""

    name: str
    blocks: tuple[BlockReuse, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per connection."""
        for block in self.blocks:
            relative = block.relative()
            for column, target in enumerate(block.targets):
                for row, source in enumerate(block.sources):
                    if not np.isnan(block.strength[row, column]):
                        yield {
                            "block": block.block,
                            "target": target,
                            "source": source,
                            "l1_per_map": float(block.strength[row, column]),
                            "relative": float(relative[row, column]),
                        }

    def draw(self) -> Figure:
        """Draw a heat map for each block, as in the paper."""
        columns = [len(block.targets) for block in self.blocks]
        rows = max(len(block.sources) for block in self.blocks)
        cell = min(max(_CELL, 7.2 / sum(columns)), 0.3)
        gap, left, right, bottom, top, bar_height = 0.42, 0.75, 1.1, 0.55, 1.05, 1.6
        # Sources are often read about equally: colors over the whole range from 0 to 1 would hide the rest.
        lowest = min(float(np.nanmin(block.relative())) for block in self.blocks)
        lowest = min(math.floor(10 * lowest) / 10, 0.9)
        width = max(left + cell * sum(columns) + gap * (len(columns) - 1) + right, _TITLE_WIDTH)
        height = bottom + max(cell * rows, bar_height) + top
        figure = Figure(figsize=(width, height), facecolor="white")
        x, image = left, None
        for number, block in enumerate(self.blocks, start=1):
            extent = (cell * len(block.targets) / width, cell * len(block.sources) / height)
            y = (height - top) / height - extent[1]
            axes = figure.add_axes((x / width, y, *extent))
            last = number == len(self.blocks)
            image = _draw_block(axes, block, number, lowest=lowest, first=number == 1, final=last)
            x += cell * len(block.targets) + gap
        bar = figure.add_axes(
            (
                (x - gap + 0.22) / width,
                (height - top - bar_height) / height,
                0.12 / width,
                bar_height / height,
            )
        )
        assert image is not None
        figure.colorbar(image, cax=bar, ticks=[lowest, (lowest + 1) / 2, 1], format="%.2g")
        bar.tick_params(labelsize=8, colors=_INK, length=2)
        bar.set_ylabel("mean |weight|, relative to\nthe column's largest", fontsize=7.5, color=_INK)
        _title(
            figure,
            self.name,
            "how strongly each layer's weights read the features of earlier layers\n"
            f"T: transition, C: classifier; colors span {lowest:.1f} to 1, the range of the values",
        )
        return figure


@dataclass(frozen=True, kw_only=True)
class BranchShare:
    """How much a residual block's branch contributes to its output.

    Attributes:
        block: Path of the block in the model.
        shortcut: "identity", "projection" or "pad".
        branch: Mean absolute value of the branch's output, over images, channels and positions.
        shortcut_size: The same for the shortcut's output.
    """

    block: str
    shortcut: str
    branch: float
    shortcut_size: float

    @property
    def share(self) -> float:
        """From 0 (the block changes nothing) to 1 (the shortcut carries nothing)."""
        total = self.branch + self.shortcut_size
        return self.branch / total if total > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class ResidualReuse:
    """How much each branch of a residual network contributes to its block's output.

    Attributes:
        name: The registry's name.
        images: Number of images measured.
        blocks: In order.
        failures: Images that could not be read, each with the reason.
    """

    name: str
    images: int
    blocks: tuple[BranchShare, ...]
    failures: dict[str, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per block."""
        for block in self.blocks:
            yield {
                "block": block.block,
                "shortcut": block.shortcut,
                "branch": block.branch,
                "shortcut_size": block.shortcut_size,
                "share": block.share,
            }

    def draw(self) -> Figure:
        """Draw a bar chart with one bar per block."""
        count = len(self.blocks)
        figure = Figure(figsize=(min(max(6.4, 1.6 + 0.3 * count), 18), 3.6), facecolor="white")
        axes = figure.add_axes((0.09 if count < 24 else 0.05, 0.12, 0.88, 0.64))
        stages = [block.block.rpartition(".")[0] for block in self.blocks]
        names = list(dict.fromkeys(stages))
        colors = mpl.colormaps["plasma"](np.linspace(0, 0.82, len(names)))
        for place, block in enumerate(self.blocks):
            color = colors[names.index(stages[place])]
            plain = block.shortcut == "identity"
            axes.bar(
                place,
                block.share,
                width=0.78,
                color=color,
                edgecolor="white",
                linewidth=0.0 if plain else 0.4,
                hatch=None if plain else "////",
            )
        axes.set_xlim(-0.7, count - 0.3)
        axes.set_ylim(0, 1)
        axes.axhline(0.5, color="#c9ced6", lw=0.8, zorder=0)
        middles = [np.mean([i for i, stage in enumerate(stages) if stage == name]) for name in names]
        axes.set_xticks(
            middles, [f"stage {number}" for number in range(1, len(names) + 1)], fontsize=9, color=_INK
        )
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9, color=_INK)
        axes.tick_params(length=0)
        axes.set_ylabel("share of the residual branch", fontsize=9, color=_INK)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        if any(block.shortcut != "identity" for block in self.blocks):
            patch = Patch(facecolor="#7d8794", edgecolor="white", hatch="////")
            axes.legend(
                [patch],
                ["projection or padded shortcut"],
                fontsize=8,
                frameon=False,
                labelcolor=_INK,
                loc="lower right",
                bbox_to_anchor=(1, 1.0),
            )
        _title(
            figure,
            self.name,
            f"mean magnitude of each branch, relative to branch plus shortcut; {self.images:,} images",
        )
        return figure


Reuse = DenseReuse | ResidualReuse


def reuse(model: str | os.PathLike[str] | Classifier, images: Images | None = None) -> Reuse:
    """Measure how a trained network uses its connections.

    Args:
        model: A model file, a run folder, or a classifier that runs in PyTorch.
        images: One image or several, as `Classifier.predict` takes, if `needs_images` is true; dense blocks
            need none.

    Raises:
        UserError: If residual branches are to be measured and no image can be read, or if the network has
            neither dense nor residual blocks.
    """
    classifier = as_classifier(model, runtime="torch")
    classifier.preprocessing.require_images("reuse")
    network = classifier.model
    name = network.config.name
    graph = network_graph(network.config)
    if _scopes(graph, "dense block"):
        return DenseReuse(name=name, blocks=tuple(_dense_blocks(network, graph)))
    if not _scopes(graph, "residual block"):
        raise UserError(f"{name} has neither dense nor residual blocks")
    named = list(named_sources(() if images is None else images))
    if not named:
        raise UserError(f"images: must name at least one, to measure the branches of {name} on")
    return _residual_blocks(classifier, graph, named)


def needs_images(classifier: Classifier) -> bool:
    """Whether `reuse` measures on images: it does for residual branches, not for dense blocks."""
    return not _scopes(network_graph(config_from_dict(classifier.architecture)), "dense block")


def check_reuse_output(output: str | os.PathLike[str]) -> None:
    """Check the format of a plot, before the slow work.

    Args:
        output: As of `save_reuse`.

    Raises:
        UserError: For another format than .png, .svg and .pdf.
    """
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"output={path}: must end in {', '.join(FORMATS)}")


def save_reuse(found: Reuse, output: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the plot, and its data as a CSV file next to it.

    Args:
        found: Result of `reuse`.
        output: A .png, .svg or .pdf file.

    Returns:
        Paths of the plot and the CSV file.

    Raises:
        UserError: For another format.
    """
    check_reuse_output(output)
    path = Path(output)
    table = path.with_suffix(".csv")
    rows = list(found.rows())
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with (
        atomic_path(path) as temporary,
        mpl.rc_context({"font.family": "DejaVu Sans", "hatch.linewidth": 0.6}),
    ):
        found.draw().savefig(temporary, dpi=160)
    return path, table


def _scopes(graph: Graph, kind: str) -> list[Scope]:
    return [scope for scope in graph.scopes if scope.kind == kind]


def _dense_blocks(model: Backbone[Any], graph: Graph) -> Iterator[BlockReuse]:
    layers = _scopes(graph, "dense layer")
    for block in _scopes(graph, "dense block"):
        own = [layer for layer in layers if block.start <= layer.start < block.stop]
        # The first convolution of each layer reads the features; the 3×3 of a bottleneck reads its own.
        readers: list[tuple[str, Operation]] = [
            (_last_name(layer.path), operation)
            for layer in own
            if (operation := _first(graph.inside(layer), Convolution))
        ]
        names = [name for name, _ in readers]
        # Channels of each layer's input and of the whole block: where one source's maps end.
        read = [graph.operations[layer.start].inputs[0] for layer in own]
        read.append(graph.operations[block.stop - 1].output)
        edges = [0, *(graph.values[value].channels for value in read)]
        # After the block, the next convolution or linear layer reads all of it.
        last = _first(graph.operations[block.stop :], Convolution, Linear)
        if last is not None:
            scope = next((scope for scope in graph.scopes if last in graph.inside(scope)), None)
            readers.append((_last_name(scope.path if scope else last.name), last))
        strength = np.full((len(own) + 1, len(readers)), np.nan)
        for column, (_, reader) in enumerate(readers):
            weight = _weight(model.get_submodule(reader.name))
            per_map = weight.double().abs().transpose(0, 1).flatten(1).sum(1).cpu().numpy()
            if isinstance(reader, Linear):  # With "catavgmax" it reads each map twice.
                per_map = per_map.reshape(-1, edges[-1]).sum(0)
            for row in range(min(column + 1, len(own) + 1)):
                strength[row, column] = per_map[edges[row] : edges[row + 1]].mean()
        yield BlockReuse(
            block=block.path,
            sources=("input", *names),
            targets=tuple(name for name, _ in readers),
            strength=strength,
        )


def _first(operations: Iterable[Operation], *kinds: type[Operation]) -> Operation | None:
    """The first operation of these kinds that mixes channels: a depthwise convolution only passes them on."""
    return next(
        (each for each in operations if isinstance(each, kinds) and getattr(each, "groups", 1) == 1), None
    )


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


@dataclass(frozen=True, kw_only=True)
class _ResidualBlock:
    """Graph values that a residual block adds (shortcut and branch), and the kind of shortcut."""

    path: str
    shortcut: int
    branch: int
    kind: str


def _residual_sums(graph: Graph) -> Iterator[_ResidualBlock]:
    for scope in _scopes(graph, "residual block"):
        operations = graph.inside(scope)
        addition = next(operation for operation in operations if isinstance(operation, Add))
        shortcut, branch = addition.inputs
        made_by = graph.producer(shortcut)
        if made_by not in operations:
            kind = "identity"
        else:
            kind = "pad" if isinstance(made_by, Pad) else "projection"
        yield _ResidualBlock(path=scope.path, shortcut=shortcut, branch=branch, kind=kind)


def _residual_blocks(
    classifier: Classifier, graph: Graph, images: Sequence[tuple[str, Source]]
) -> ResidualReuse:
    without_lost_threads()
    blocks = list(_residual_sums(graph))
    sizes: dict[int, float] = {}  # Sum over images of a value's mean absolute value.
    # Hooks on a copy see each image once: not what other threads compute meanwhile, nor the further passes
    # of a runtime, for views of an image or in half precision.
    model = sharing_tensors(classifier.model)
    parameter = next(model.parameters())

    def watch(value: int) -> None:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            sizes[value] += float(output.abs().mean(dim=(1, 2, 3), dtype=torch.float32).sum())

        sizes[value] = 0.0
        made_by = graph.producer(value)
        assert made_by is not None
        model.get_submodule(made_by.name).register_forward_hook(add)

    for value in {value for block in blocks for value in (block.shortcut, block.branch)}:
        watch(value)
    failures: dict[str, str] = {}
    with evaluating(model), torch.no_grad():
        for start in range(0, len(images), _BATCH):
            pixels = []
            for name, image in images[start : start + _BATCH]:
                try:
                    pixels.append(classifier.preprocessing(image))
                except ImageDecodeError as error:
                    failures[name] = str(error)
            if pixels:
                model(torch.from_numpy(np.stack(pixels)).to(parameter.device, parameter.dtype))
    count = len(images) - len(failures)
    if count == 0:
        raise UserError(f"images: none can be read: {next(iter(failures.values()))}")
    return ResidualReuse(
        name=model.config.name,
        images=count,
        failures=failures,
        blocks=tuple(
            BranchShare(
                block=block.path,
                shortcut=block.kind,
                branch=sizes[block.branch] / count,
                shortcut_size=sizes[block.shortcut] / count,
            )
            for block in blocks
        ),
    )


def _draw_block(
    axes: Axes, block: BlockReuse, number: int, *, lowest: float, first: bool, final: bool
) -> Any:
    relative = block.relative()
    colors = mpl.colormaps["magma_r"].with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_invalid(relative), cmap=colors, vmin=lowest, vmax=1, aspect="auto")
    sources, targets = relative.shape
    axes.add_patch(
        Rectangle((targets - 1.5, -0.5), 1, sources, fill=False, ec="#0072b2", lw=1.6, clip_on=False)
    )
    every = 1 if sources <= 9 else 4 if sources <= 33 else 8
    layers = list(range(every, sources, every)) if every > 1 else list(range(1, sources))
    last = "C" if final else "T"
    if every > 1:
        layers = [layer for layer in layers if sources - layer >= max(every // 2, 2)]
    axes.set_xticks([*(layer - 1 for layer in layers), targets - 1], [*map(str, layers), last])
    axes.set_yticks([0, *layers], ["in", *map(str, layers)])
    axes.tick_params(labelsize=7.5, length=2, colors=_INK, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"dense block {number}", fontsize=9, color=_INK, pad=5)
    axes.set_xlabel("target layer", fontsize=8, color=_INK)
    if first:
        axes.set_ylabel("source layer", fontsize=8, color=_INK)
    return image


def _title(figure: Figure, name: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.15 / figure.get_figwidth(), 1 - 0.24 / height, name, fontsize=12, weight="bold", color=_INK)
    figure.text(
        0.15 / figure.get_figwidth(), 1 - 0.36 / height, subtitle, fontsize=8.5, color="#5b6470", va="top"
    )
