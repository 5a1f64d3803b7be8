"""What a trained network makes of its shortcuts: the features dense layers read, what residual branches add.

For a DenseNet this is figure 5 of its paper (arXiv 1608.06993): the weights tell. For a ResNet the weights do
not, so images go through it.

Letters: C₀ channels of a dense block's input, k growth rate, L layers of the block.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import ImageDecodeError
from skipnets.errors import UserError, missing_extra
from skipnets.files import atomic_path
from skipnets.insight.modes import evaluating
from skipnets.models.densenet import DenseBlock, DenseNet
from skipnets.models.resnet import BasicBlock, BottleneckBlock, PadShortcut, ResNet

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
except ModuleNotFoundError as error:
    raise missing_extra("train") from error

FORMATS = (".png", ".svg", ".pdf")
_CELL = 0.17
_INK = "#22272e"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class BlockReuse:
    """How much each layer of a dense block reads of what was made before it.

    Attributes:
        block: Its path in the model.
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
        """`strength` divided by the largest of each target: 1 is what it reads most of."""
        largest: NDArray[np.float64] = np.nanmax(self.strength, axis=0, keepdims=True)
        return self.strength / np.where(largest > 0, largest, 1)


@dataclass(frozen=True, kw_only=True)
class DenseReuse:
    """Feature reuse of a DenseNet, block by block."""

    name: str
    blocks: tuple[BlockReuse, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each connection."""
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
        """A heat map for each block, as in the paper."""
        columns = [len(block.targets) for block in self.blocks]
        rows = max(len(block.sources) for block in self.blocks)
        cell = min(max(_CELL, 7.2 / sum(columns)), 0.3)
        gap, left, bottom, top = 0.42, 0.75, 0.55, 1.05
        # Sources are often read about equally: colors over the whole range from 0 to 1 would hide the rest.
        lowest = min(float(np.nanmin(block.relative())) for block in self.blocks)
        lowest = min(math.floor(10 * lowest) / 10, 0.9)
        width = left + cell * sum(columns) + gap * (len(columns) - 1) + 0.95
        height = bottom + cell * rows + top
        figure = Figure(figsize=(width, height), facecolor="white")
        x, image = left, None
        for number, block in enumerate(self.blocks, start=1):
            extent = (cell * len(block.targets) / width, cell * len(block.sources) / height)
            y = (height - top) / height - extent[1]
            axes = figure.add_axes((x / width, y, *extent))
            image = _draw_block(axes, block, number, lowest=lowest, first=number == 1)
            x += cell * len(block.targets) + gap
        bar = figure.add_axes(
            ((x - gap + 0.22) / width, (height - top - 1.6) / height, 0.12 / width, 1.6 / height)
        )
        assert image is not None
        figure.colorbar(image, cax=bar, ticks=[lowest, (lowest + 1) / 2, 1], format="%.2g")
        bar.tick_params(labelsize=8, colors=_INK, length=2)
        bar.set_ylabel("mean |weight|, relative to\nthe column's largest", fontsize=7.5, color=_INK)
        _title(
            figure,
            self.name,
            "how strongly each layer's weights read the features of earlier layers\n"
            f"T: transition, C: classifier; colors start at {lowest:.1f}"
            + (", as all sources are read about equally" if lowest >= 0.5 else ""),
        )
        return figure


@dataclass(frozen=True, kw_only=True)
class BranchShare:
    """How much of a residual block's output comes from its branch.

    Attributes:
        block: Its path in the model.
        shortcut: "identity", "projection" or "pad".
        branch: Mean absolute value of what the branch adds, over images, channels and positions.
        shortcut_size: The same of what the shortcut brings.
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
    """What the blocks of a ResNet add to what passes by them.

    Attributes:
        name: The registry's name.
        images: How many were measured.
        blocks: In order.
        failures: Images that could not be read, each with the reason.
    """

    name: str
    images: int
    blocks: tuple[BranchShare, ...]
    failures: dict[str, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each block."""
        for block in self.blocks:
            yield {
                "block": block.block,
                "shortcut": block.shortcut,
                "branch": block.branch,
                "shortcut_size": block.shortcut_size,
                "share": block.share,
            }

    def draw(self) -> Figure:
        """A bar for each block."""
        count = len(self.blocks)
        figure = Figure(figsize=(min(max(6.4, 1.6 + 0.3 * count), 18), 3.6), facecolor="white")
        axes = figure.add_axes((0.09 if count < 24 else 0.05, 0.12, 0.88, 0.64))
        stages = [block.block.split(".", 1)[0] for block in self.blocks]
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
        axes.set_xticks(middles, [name.replace("layer", "stage ") for name in names], fontsize=9, color=_INK)
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


def reuse(classifier: Classifier, images: Sequence[Any] | None = None) -> Reuse:
    """Measure how a trained network uses its connections.

    Args:
        classifier: It must run in PyTorch.
        images: Paths, PIL images or arrays, which a ResNet needs; a DenseNet's weights are enough.

    Raises:
        UserError: If a ResNet gets no images that can be read.
    """
    model = classifier.model
    if isinstance(model, DenseNet):
        return DenseReuse(name=model.config.name, blocks=tuple(_dense_blocks(model)))
    if not images:
        raise UserError(f"{model.config.name} is a ResNet, whose branches are measured on images: name some")
    return _residual_blocks(classifier, model, images)


def save_reuse(found: Reuse, output: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the drawing, and the numbers beside it as CSV.

    Args:
        found: What `reuse` gave.
        output: A .png, .svg or .pdf file.

    Returns:
        Both files.

    Raises:
        UserError: For another format.
    """
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"output: {path} must end in {', '.join(FORMATS)}")
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


def _dense_blocks(model: DenseNet) -> Iterator[BlockReuse]:
    stages = list(model.stages())
    for place, (path, stage) in enumerate(stages):
        if not isinstance(stage, DenseBlock):
            continue
        layers = list(stage.named_children())
        # The first convolution of each layer reads the features; the 3×3 of a bottleneck reads its own.
        readers = [(name, _weight(layer.get_submodule("conv1"))) for name, layer in layers]
        channels = readers[0][1].shape[1]
        growth = model.config.growth_rate
        sources = ["input", *(name for name, _ in layers)]
        edges = [0, *(channels + growth * layer for layer in range(len(layers) + 1))]
        following = stages[place + 1]
        if following[0].rsplit(".", 1)[-1].startswith("transition"):
            readers.append((following[0].rsplit(".", 1)[-1], _weight(following[1].get_submodule("conv"))))
        elif isinstance(head := model.get_classifier(), nn.Linear):
            readers.append((model.head_name, head.weight.detach()))
        strength = np.full((len(sources), len(readers)), np.nan)
        for column, (_, weight) in enumerate(readers):
            per_map = weight.double().abs().transpose(0, 1).flatten(1).sum(1).cpu().numpy()
            for row in range(min(column + 1, len(sources))):
                strength[row, column] = per_map[edges[row] : edges[row + 1]].mean()
        yield BlockReuse(
            block=path,
            sources=tuple(sources),
            targets=tuple(name for name, _ in readers),
            strength=strength,
        )


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def _residual_blocks(classifier: Classifier, model: ResNet, images: Sequence[Any]) -> ResidualReuse:
    blocks = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, BasicBlock | BottleneckBlock)
    }
    branch, shortcut = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0.0)
    failures: dict[str, str] = {}

    def watch(path: str, block: nn.Module) -> list[Any]:
        def add(sums: dict[str, float], x: Tensor) -> None:
            sums[path] += float(x.abs().mean(dim=(1, 2, 3)).double().sum())

        handles = [
            block.get_submodule("drop_path").register_forward_hook(lambda _m, _i, out: add(branch, out))
        ]
        if isinstance(block.downsample, nn.Module):
            handles.append(block.downsample.register_forward_hook(lambda _m, _i, out: add(shortcut, out)))
        else:
            handles.append(block.register_forward_pre_hook(lambda _m, inputs: add(shortcut, inputs[0])))
        return handles

    handles = [handle for path, block in blocks.items() for handle in watch(path, block)]
    try:
        with evaluating(model), torch.no_grad():
            for start in range(0, len(images), _BATCH):
                pixels = []
                for index, image in enumerate(images[start : start + _BATCH], start):
                    try:
                        pixels.append(classifier.preprocessing(image))
                    except ImageDecodeError as error:
                        name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"[{index}]"
                        failures[name] = str(error)
                if pixels:
                    classifier.logits(np.stack(pixels))
    finally:
        for handle in handles:
            handle.remove()
    count = len(images) - len(failures)
    if count == 0:
        raise UserError(f"none of the images can be read: {next(iter(failures.values()))}")
    return ResidualReuse(
        name=model.config.name,
        images=count,
        failures=failures,
        blocks=tuple(
            BranchShare(
                block=path,
                shortcut=_shortcut(block),
                branch=branch[path] / count,
                shortcut_size=shortcut[path] / count,
            )
            for path, block in blocks.items()
        ),
    )


def _shortcut(block: nn.Module) -> str:
    if block.downsample is None:
        return "identity"
    return "pad" if isinstance(block.downsample, PadShortcut) else "projection"


def _draw_block(axes: Axes, block: BlockReuse, number: int, *, lowest: float, first: bool) -> Any:
    relative = block.relative()
    colors = mpl.colormaps["magma_r"].with_extremes(bad="white")
    image = axes.imshow(np.ma.masked_invalid(relative), cmap=colors, vmin=lowest, vmax=1, aspect="auto")
    sources, targets = relative.shape
    axes.add_patch(
        Rectangle((targets - 1.5, -0.5), 1, sources, fill=False, ec="#0072b2", lw=1.6, clip_on=False)
    )
    every = 1 if sources <= 9 else 4 if sources <= 33 else 8
    layers = list(range(every, sources, every)) if every > 1 else list(range(1, sources))
    last = "T" if block.targets[-1].startswith("transition") else "C"
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
