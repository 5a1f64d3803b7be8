"""How training images are varied, drawn by torchvision.transforms.v2 from PyTorch's global generator.

Which are mirrored is given: `skipnets.data.loading` decides that for all passes.

N batch, H height, W width, C channels; images are channels last, uint8 or, of more bits or bands, float32
from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from skipnets.data.decoding import Box
from skipnets.data.preprocessing import resize_values
from skipnets.errors import UserError, near_matches

Policy = Literal["trivial", "rand", "augmix"]

# Up to this side, an image is shifted rather than enlarged from a part of it: so do the CIFAR papers.
SMALL = 64


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to a training image, in the order of the fields.

    Args:
        resized_crop: A box of 8 to 100% of the area and 3:4 to 4:3 is resized to the input (torchvision's
            RandomResizedCrop); otherwise the whole image is taken as `Preprocessing` does.
        padding: Pixels added at every edge before a crop of the former size (RandomCrop); 0 for none.
        reflect: These mirror what lies at the edge, as in the public CIFAR-10 speed runs; otherwise they are
            black.
        mirror: Left and right are swapped in half of the images, in the next pass in the others.
        policy: Random changes of geometry and color: one of random strength ("trivial", TrivialAugmentWide),
            two ("rand", RandAugment), or a mixture of chains of them ("augmix", AugMix); None for none.
        erasing: Share of the images in which a box of 2 to 33% of the area gets the mean color
            (RandomErasing).
    """

    resized_crop: bool = False
    padding: int = 0
    reflect: bool = False
    mirror: bool = False
    policy: Policy | None = None
    erasing: float = 0.0


AUGMENTATIONS = {
    "none": Augmentation(),
    "flip": Augmentation(mirror=True),
    "crop": Augmentation(padding=4),
    "crop-flip": Augmentation(padding=4, mirror=True),
    "shift": Augmentation(padding=2, reflect=True),
    "shift-flip": Augmentation(padding=2, reflect=True, mirror=True),
    "resized-crop": Augmentation(resized_crop=True, mirror=True),
    "trivial": Augmentation(resized_crop=True, mirror=True, policy="trivial"),
    "rand": Augmentation(resized_crop=True, mirror=True, policy="rand"),
    "augmix": Augmentation(resized_crop=True, mirror=True, policy="augmix"),
}

_resized_crop = v2.RandomResizedCrop(1)  # it only draws boxes here, for which its size does not matter
_POLICIES: Mapping[Policy, v2.Transform] = {
    "trivial": v2.TrivialAugmentWide(),
    "rand": v2.RandAugment(),
    "augmix": v2.AugMix(),
}


def find_augmentation(name: str, size: Sequence[int], *, erasing: float = 0.0) -> Augmentation:
    """The augmentation of that name for inputs of this (H, W).

    "trivial", "rand" and "augmix" take a resized crop, but pad and crop where the input is at most 64 pixels
    high and wide. Inputs below 32 pixels are padded by an eighth of their size, which at 32 is the papers' 4.

    Raises:
        UserError: There is no such augmentation.
    """
    if name not in AUGMENTATIONS:
        near = near_matches(name, AUGMENTATIONS)
        raise UserError(f"augmentation={name!r}: must be one of {', '.join(AUGMENTATIONS)}{near}")
    augmentation = AUGMENTATIONS[name]
    if augmentation.policy is not None and max(size) <= SMALL:
        augmentation = replace(augmentation, resized_crop=False, padding=4)
    padding = min(augmentation.padding, max(max(size) // 8, 1))
    return replace(augmentation, padding=padding, erasing=erasing)


def draw_box(width: int, height: int) -> Box:
    """RandomResizedCrop's choice in an image of this size: (left, top, right, bottom)."""
    box = _resized_crop.make_params([torch.empty((1, height, width), device="meta")])
    return (box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"])


def resized_crop(
    image: Image.Image | NDArray[Any],
    box: Box,
    *,
    size: tuple[int, int],
    interpolation: str,
    mirror: bool,
) -> NDArray[Any]:
    """Cut a box out of an image (or (H, W, C) pixels), to whole pixels, and resize it to (H, W): (H, W, C).

    torchvision's antialiased resize of uint8 tensors gives Pillow's values (to one level) in half the time.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    if isinstance(image, Image.Image):
        cut = np.array(image.crop((left, top, right, bottom)))
    else:
        cut = np.ascontiguousarray(image[top:bottom, left:right])
    cut = cut.reshape(*cut.shape[:2], -1)
    if cut.dtype == np.float32:
        values = resize_values(cut, size[::-1], interpolation)
        return values[:, ::-1] if mirror else values
    if interpolation == "lanczos":
        pil_image = Image.fromarray(cut[:, :, 0] if cut.shape[2] == 1 else cut)
        pixels = v2.functional.pil_to_tensor(pil_image.resize(size[::-1], Image.Resampling.LANCZOS))
    else:
        channels_first = torch.from_numpy(cut).permute(2, 0, 1)
        mode = v2.InterpolationMode(interpolation)
        pixels = v2.functional.resize(channels_first, list(size), mode, antialias=True)
    resized: NDArray[np.uint8] = (pixels.flip(-1) if mirror else pixels).permute(1, 2, 0).numpy()
    return resized


def shift_and_mirror(
    images: NDArray[Any], *, padding: int, mirrored: NDArray[np.bool_], reflect: bool = False
) -> NDArray[Any]:
    """Padded RandomCrop, each image by its own draw, then left and right swapped: a new (N, H, W, C).

    Args:
        images: (N, H, W, C).
        padding: Pixels added at every edge.
        mirrored: (N,) which are mirrored.
        reflect: Whether the padding mirrors what lies at the edge.
    """
    count, height, width, _ = images.shape
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, widths, mode="reflect") if reflect else np.pad(images, widths)
    offsets = torch.randint(2 * padding + 1, (count, 2)).tolist()
    shifted = np.empty_like(images)
    for result, canvas, (top, left), flip in zip(shifted, padded, offsets, mirrored, strict=True):
        window = canvas[top : top + height, left : left + width]
        result[...] = window[:, ::-1] if flip else window
    return shifted


def vary(images: NDArray[Any], policy: Policy) -> NDArray[Any]:
    """TrivialAugmentWide, RandAugment or AugMix, each image by its own draw: a new (N, H, W, C).

    On PIL images, where torchvision's operators are faster than on tensors. Images of more bits or bands are
    tensors, of which every band is changed alike, as a gray image.
    """
    changed = np.empty_like(images)
    transform = _POLICIES[policy]
    for result, image in zip(changed, images, strict=True):
        if image.dtype == np.float32:
            result[...] = _vary_values(image, transform)
            continue
        pil_image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        result[...] = np.asarray(transform(pil_image)).reshape(image.shape)
    return changed


def _vary_values(values: NDArray[np.float32], transform: v2.Transform) -> NDArray[np.float32]:
    """(H, W, C) from 0 to 255."""
    bands = torch.from_numpy(values / 255).permute(2, 0, 1)
    # Of three, color is changed as color; others are a batch of gray images, (C, 1, H, W).
    changed = transform(bands if len(bands) == 3 else bands[:, None])
    result: NDArray[np.float32] = changed.reshape(bands.shape).permute(1, 2, 0).numpy() * 255
    return result.clip(0, 255)


def erase(images: NDArray[Any], share: float, colors: Sequence[float]) -> NDArray[Any]:
    """RandomErasing, each image by its own draw: a new (N, H, W, C).

    Args:
        images: (N, H, W, C).
        share: Of the images, in which a box is erased.
        colors: What it gets, for each channel, from 0 to 255.
    """
    transform = v2.RandomErasing(p=share, value=[round(color) for color in colors])
    erased = np.empty_like(images)
    for result, image in zip(erased, images, strict=True):
        changed = transform(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        result[...] = changed.permute(1, 2, 0).numpy()
    return erased
