"""Views are those of torchvision; their probabilities are averaged, equally in every runtime."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from tests.helpers.classifiers import FORMATS, some_image
from torchvision.transforms import v2

from skipnets.classifier import Classifier, load
from skipnets.deploy import export_model
from skipnets.errors import UserError
from skipnets.runtimes.views import TTA, averaged_logits, check_tta, views


def by_torchvision(batch: NDArray[Any], tta: str) -> list[NDArray[Any]]:
    """The views, in torchvision's words."""
    images = torch.from_numpy(batch)
    height, width = batch.shape[2:]
    found = [images]
    if "crops" in tta:
        shift = round(min(height, width) / 16)
        padded = v2.functional.pad(images, [shift] * 4, padding_mode="reflect")
        top_left, top_right, bottom_left, bottom_right, _ = v2.functional.five_crop(padded, [height, width])
        found += [top_left, top_right, bottom_left, bottom_right]
    if "flip" in tta:
        found += [v2.functional.horizontal_flip(image) for image in found]
    return [image.numpy() for image in found]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("tta", TTA)
def test_views_are_those_of_torchvision(tta: str, kind: type) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 32)).astype(kind)
    wanted = by_torchvision(batch, tta)
    assert len(wanted) == {"none": 1, "flip": 2, "crops": 5, "flip-crops": 10}[tta]
    found = list(views(batch, tta))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == kind
        assert one.flags.c_contiguous
        assert (one == other).all()


def by_index(batch: NDArray[Any], tta: str) -> list[NDArray[Any]]:
    """The views, each value looked up by its place."""
    sides = batch.shape[2:]
    shift = max(round(min(sides) / 16), 1)
    corners: list[tuple[int, ...]] = [(0,) * len(sides)]
    if "crops" in tta:
        corners += itertools.product((-shift, shift), repeat=len(sides))
    found = []
    for mirrored in (False, True) if "flip" in tta else (False,):
        for corner in corners:
            view = np.empty_like(batch)
            for place in np.ndindex(*sides):
                seen = (*place[:-1], sides[-1] - 1 - place[-1]) if mirrored else place
                moved = (at + step for at, step in zip(seen, corner, strict=True))
                inside = (
                    0 if side == 1 else -at if at < 0 else 2 * side - 2 - at if at >= side else at
                    for at, side in zip(moved, sides, strict=True)
                )
                view[:, :, *place] = batch[:, :, *inside]
            found.append(view)
    return found


@pytest.mark.parametrize("sides", [(5, 4, 6), (1, 40, 32), (33,)])
@pytest.mark.parametrize("tta", TTA)
def test_views_of_volumes_and_signals(tta: str, sides: tuple[int, ...]) -> None:
    batch = np.random.default_rng(0).normal(size=(2, 3, *sides)).astype(np.float32)
    wanted = by_index(batch, tta)
    if "flip" not in tta:
        assert len(wanted) == (1 + 2 ** len(sides) if "crops" in tta else 1)
    found = list(views(batch, tta))
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))
    assert all(view.flags.c_contiguous for view in found)


def test_signals_are_not_mirrored() -> None:
    check_tta("crops", 1)
    check_tta("flip-crops", 3)
    for tta in ("flip", "flip-crops"):
        message = f"^tta={tta}: must be none or crops for signals, which backwards are others$"
        with pytest.raises(UserError, match=message):
            check_tta(tta, 1)


@pytest.mark.parametrize("tta", TTA[1:])
def test_probabilities_of_the_views_are_averaged(tta: str, exported_classifier: Classifier) -> None:
    assert exported_classifier.path is not None
    augmented = load(exported_classifier.path, runtime="torch", tta=tta)
    batch = exported_classifier.preprocess([some_image(seed=seed) for seed in range(3)])
    each = by_torchvision(batch, tta)
    wanted = np.mean([softmax(exported_classifier.logits(view), axis=1) for view in each], axis=0)
    assert augmented.probabilities(batch) == pytest.approx(wanted, abs=1e-6)
    assert softmax(augmented.logits(batch), axis=1) == pytest.approx(wanted, abs=1e-6)
    assert np.abs(wanted - exported_classifier.probabilities(batch)).max() > 1e-4
    embedded = np.mean([exported_classifier.runtime.embed(view) for view in each], axis=0)
    assert augmented.embed_batch(batch) == pytest.approx(embedded, abs=1e-6)
    # An image's result does not depend on the others'.
    alone = np.concatenate([augmented.probabilities(image[None]) for image in batch])
    assert alone == pytest.approx(augmented.probabilities(batch), abs=1e-6)
    image = some_image()
    assert augmented.predict(image)[0].probability == pytest.approx(wanted[0].max(), abs=1e-6)


def test_every_runtime_gives_the_same(exported_classifier: Classifier, exports: dict[str, Any]) -> None:
    image = some_image()
    path = exported_classifier.path
    assert path is not None
    for tta in TTA[1:]:
        [wanted] = load(path, runtime="torch", tta=tta).predict(image, top_k=3)
        opened = [load(exports[name].path, tta=tta) for name in FORMATS]
        opened.append(load(path, tta=tta))  # the native engine, if it is installed
        for classifier in opened:
            [found] = classifier.predict(image, top_k=3)
            assert dict(found.ranking) == pytest.approx(dict(wanted.ranking), abs=1e-4)


def test_a_graph_holds_no_views_but_the_mirrored(exported_classifier: Classifier) -> None:
    assert exported_classifier.path is not None
    classifier = load(exported_classifier.path, runtime="torch", device="cpu", tta="flip-crops")
    with pytest.raises(UserError, match="tta=flip-crops: must be none or flip, the views that fit"):
        export_model(classifier)


def test_probabilities_of_labels_are_averaged_by_sigmoids() -> None:
    batch = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)

    def network(images: NDArray[Any]) -> NDArray[np.float32]:
        return 40 * images[:, :, 0, 0]  # far beyond what float32 probabilities tell apart

    found = averaged_logits(network, batch, "flip", task="multi-label").astype(np.float64)
    each = [network(view).astype(np.float64) for view in by_torchvision(batch, "flip")]
    assert expit(found) == pytest.approx(np.mean([expit(logits) for logits in each], axis=0), abs=1e-6)
    assert expit(-found) == pytest.approx(np.mean([expit(-logits) for logits in each], axis=0), rel=1e-4)


@pytest.mark.parametrize("tta", ["rotate", "Flip", 3, None])
def test_an_unknown_name_is_refused(tta: Any) -> None:
    with pytest.raises(UserError, match=f"tta={tta}: must be one of none, flip, crops, flip-crops"):
        check_tta(tta)
