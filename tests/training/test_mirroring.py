from __future__ import annotations

import numpy as np
import pytest

from skipnets.data.dataset import ImageDataset
from skipnets.data.sources import open_dataset
from skipnets.data.volumes import VolumeDataset
from skipnets.training.mirroring import keeps_class_mirrored


def dataset(images: np.ndarray, labels: np.ndarray) -> ImageDataset:
    return ImageDataset(
        classes=("a", "b"),
        names=[str(index) for index in range(len(images))],
        labels=labels,
        splits=np.full(len(images), "train"),
        images=images,
    )


def wedges(mirrored_class: bool, count: int = 60) -> ImageDataset:
    """Ramps that rise to the right; those of class 1 fall instead, or are steeper."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    ramp = np.linspace(0, 1, 12)[None, :].repeat(12, 0)
    shapes = (ramp, ramp[:, ::-1]) if mirrored_class else (np.abs(ramp - 0.5), np.abs(ramp - 0.5) < 0.2)
    images = np.stack([shapes[label] for label in labels]) * 150 + generator.uniform(0, 60, (count, 12, 12))
    return dataset(images.astype(np.uint8), labels)


def test_what_mirrors_into_another_class_is_not_mirrored() -> None:
    assert not keeps_class_mirrored(wedges(mirrored_class=True))
    assert keeps_class_mirrored(wedges(mirrored_class=False))


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    """Of 400 images 20 are of the other class: who always answers with the frequent one is right for 95%."""
    for mirrored_class in (True, False):
        equal = wedges(mirrored_class, 760)
        assert equal.images is not None
        kept = np.concatenate([np.flatnonzero(equal.labels == 0), np.flatnonzero(equal.labels == 1)[:20]])
        unequal = dataset(equal.images[kept], equal.labels[kept])
        assert keeps_class_mirrored(unequal) == (not mirrored_class)


def test_digits_are_not_mirrored() -> None:
    assert not keeps_class_mirrored(open_dataset("digits").split("train"))


def test_volumes_are_seen_from_above() -> None:
    for mirrored_class in (True, False):
        images = wedges(mirrored_class)
        assert images.images is not None
        values = np.repeat(images.images[:, None, :, :, None], 5, axis=1)
        volumes = VolumeDataset(
            classes=images.classes,
            names=images.names,
            labels=images.labels,
            splits=images.splits,
            images=values,
            axes=3,
        )
        assert keeps_class_mirrored(volumes) == (not mirrored_class)


@pytest.mark.parametrize("count", [4, 60])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (24, 12), (12, 23), (12, 24)])
def test_where_pixels_do_not_tell_mirroring_is_harmless_unless_images_are_wide(
    count: int, height: int, width: int
) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 255, (count, height, width)).astype(np.uint8)
    images[0] = 7  # of one color
    assert keeps_class_mirrored(dataset(images, np.arange(count) % 2)) == (width < 2 * height)
