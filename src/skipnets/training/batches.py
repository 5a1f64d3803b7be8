"""Show the first training batch as the network sees it: augmented, mixed and normalized, with its labels.

Shapes: N batch, C channels, H height, W width, K classes. Of volumes (N, C, D, H, W) the middle slice is
    shown, of signals nothing.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.scaling import TargetScale, unscaled
from skipnets.tables import number_text
from skipnets.training.mixing import MixedTargets, TargetMix
from skipnets.training.task import ClassificationTask

logger = logging.getLogger("skipnets")

MOST = 32  # images
_COLUMNS = 8
_SIDE = 128  # pixels, about the longer side of an image in the file
_GAP, _CAPTION = 10, 34
_WIDEST = 17  # characters of a caption's line
_CHUNK = "skipnets batch"


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image of the batch.

    Attributes:
        image: As the network sees it, with the normalization undone.
        labels: Its classes and their shares: one, or two where images are mixed.
    """

    image: Image.Image
    labels: tuple[tuple[str, float], ...]


class FirstBatch(Callback):
    """Draws a run's first batch, from what goes into the network and into the loss.

    Args:
        path: The PNG file to write.
        classes: Names of the classes.
        scales: Of numbers to predict, the targets' scales.
    """

    def __init__(
        self, path: Path, classes: Sequence[str], scales: Sequence[TargetScale] | None = None
    ) -> None:
        self.path = path
        self.classes = classes
        self.scales = scales
        self._images: Tensor | None = None
        self._targets: Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watch the network and the loss in the first step of a new run."""
        if trainer.global_step or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ClassificationTask)
        if pl_module.mean.ndim == 3:
            logger.info("%s: not drawn, as it would show signals", self.path.name)
            return
        mix = pl_module.mix
        self._hooks = [
            pl_module.model.register_forward_pre_hook(self._see_images),
            mix.register_forward_hook(self._see_mixed)
            if isinstance(mix, TargetMix)
            else pl_module.loss.register_forward_pre_hook(self._see_targets),
        ]

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw what was seen, once."""
        if self._images is None or self._targets is None:
            return
        assert isinstance(pl_module, ClassificationTask)
        self._stop()
        shown_channels = [number - 1 for number in pl_module.config.shown_channels or (1, 2, 3)]
        shown = shown_images(
            self._images,
            self._targets,
            self.classes,
            pl_module.mean,
            pl_module.std,
            shown_channels=shown_channels,
            scales=self.scales,
        )
        draw_batch(shown, self.path)
        self._images = self._targets = None

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook behind."""
        self._stop()

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _see_images(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        self._images = inputs[0].detach()[:MOST].clone()

    def _see_targets(self, _: Any, inputs: tuple[Tensor, Tensor]) -> None:
        if self._targets is None:  # the images' own; a teacher's come later
            self._targets = inputs[1].detach()[:MOST].clone()

    def _see_mixed(self, _: Any, __: Any, outputs: tuple[Tensor, MixedTargets]) -> None:
        mixed = outputs[1]
        self._targets = (mixed.shares if self.scales is None else mixed.known)[:MOST].clone()


def shown_images(
    images: Tensor,
    targets: Tensor,
    classes: Sequence[str],
    mean: Tensor,
    std: Tensor,
    *,
    shown_channels: Sequence[int] = (0, 1, 2),
    scales: Sequence[TargetScale] | None = None,
) -> list[ShownImage]:
    """The images of a batch and their labels.

    Args:
        images: (N, C, H, W), normalized; of volumes (N, C, D, H, W) the middle slice is shown.
        targets: (N,) classes, (N, K) shares of the classes, or scaled numbers.
        classes: Names of the K classes.
        mean: (1, C, 1, 1), in 0..1.
        std: (1, C, 1, 1).
        shown_channels: Of many channels, those that are shown as red, green and blue, from 0.
        scales: Of numbers, the targets' scales.
    """
    channels = images.shape[1]
    if images.ndim == 5:
        images, mean, std = images[:, :, images.shape[2] // 2], mean[:, :, 0], std[:, :, 0]
    if channels not in (1, 3):
        chosen = list(shown_channels) if channels > 3 else [0]
        images, mean, std = images[:, chosen], mean[:, chosen], std[:, chosen]
    pixels = (images.float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
    if targets.ndim == 1:
        targets = torch.nn.functional.one_hot(targets, len(classes))
    shares = targets.float().cpu().numpy()
    if scales is None:
        labels = [_labels(share, classes) for share in shares]
    else:
        labels = [_number_labels(row, classes) for row in unscaled(shares, scales)]
    return [
        ShownImage(image=_to_image(each), labels=of_image)
        for each, of_image in zip(pixels.permute(0, 2, 3, 1).cpu().numpy(), labels, strict=True)
    ]


def _to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """(H, W, C): color, or gray where C is below 3; of more channels, the first three."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] < 3 else pixels[..., :3]).convert("RGB")


def _labels(shares: NDArray[np.float32], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The classes with a share, the largest first."""
    order = np.argsort(-shares, kind="stable")
    return tuple((classes[index], float(shares[index])) for index in order if shares[index] > 0)


def _number_labels(values: NDArray[np.float64], targets: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The numbers as labels that an image has wholly; of one target, without its name."""
    texts = ["?" if value != value else number_text(value) for value in values.tolist()]
    if len(texts) == 1:
        return ((texts[0], 1.0),)
    return tuple((f"{name} {text}", 1.0) for name, text in zip(targets, texts, strict=True))


def caption(labels: Sequence[tuple[str, float]]) -> list[str]:
    """The lines below an image: "cat", or "cat 70%" and "dog 30%"; of several labels, their names."""
    if all(share == 1 for _, share in labels):
        return [name for name, _ in labels]
    return [f"{name} {share:.0%}" for name, share in labels]


def draw_batch(shown: Sequence[ShownImage], path: Path) -> None:
    """Draw images with their labels below; `read_batch` reads them from the file again."""
    from PIL import ImageDraw, ImageFont

    width, height = shown[0].image.size
    scale = _SIDE / max(width, height)
    if scale > 1:
        scale = round(scale)  # all pixels of a small image stay of equal size
    tile = max(round(width * scale), 1), max(round(height * scale), 1)
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    cell = max(tile[0], _SIDE) + _GAP, tile[1] + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    corners = []
    for number, each in enumerate(shown):
        left, top = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(each.image.resize(tile, resampling), (left, top))
        corners.append((left, top))
        for line, text in enumerate(caption(each.labels)[:2]):
            short = text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
            draw.text((left, top + tile[1] + 2 + 15 * line), short, fill="#1a222c", font=font)
    described = {"tile": tile, "corners": corners, "labels": [each.labels for each in shown]}
    information = PngImagePlugin.PngInfo()
    information.add_itxt(_CHUNK, json.dumps(described))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", pnginfo=information)


def read_batch(path: Path) -> list[ShownImage]:
    """The images and labels of a file that `draw_batch` wrote, in the size in which they were drawn.

    Raises:
        UserError: If it is none.
    """
    try:
        with Image.open(path) as sheet:
            described = json.loads(sheet.text[_CHUNK])  # type: ignore[attr-defined]
            width, height = described["tile"]
            return [
                ShownImage(
                    image=sheet.crop((left, top, left + width, top + height)),
                    labels=tuple((str(name), float(share)) for name, share in labels),
                )
                for (left, top), labels in zip(described["corners"], described["labels"], strict=True)
            ]
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a sheet of a batch ({type(error).__name__})") from error
