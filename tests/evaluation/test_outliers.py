"""Outliers that are made of images, and the score that recognizes them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from skipnets.classifier import Classifier
from skipnets.data import ImageDataset, Preprocessing
from skipnets.evaluation import outliers
from skipnets.evaluation.outliers import altered, fit_outlier_detector
from skipnets.models.registry import config_to_dict, model_config
from skipnets.uncertainty import outlier_scores


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_altered_images_keep_their_tiles_their_mean_or_their_contrast(kind: type) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (6, 3, 17, 20)).astype(kind)
    tiled, blended, noise = altered(inputs, rng)
    for each in (tiled, blended, noise):
        assert (each.shape, each.dtype) == (inputs.shape, inputs.dtype)
        assert (each != inputs).any((1, 2, 3)).all()

    def tiles(image: NDArray[Any]) -> list[bytes]:
        return sorted(
            image[:, y : y + 4, x : x + 5].tobytes() for y in range(0, 16, 4) for x in range(0, 20, 5)
        )

    assert all(tiles(one) == tiles(other) for one, other in zip(tiled, inputs, strict=True))
    assert (tiled[:, :, 16:] == inputs[:, :, 16:]).all()
    pairs = [(a, b) for a in range(6) for b in range(6) if a != b]
    values = inputs.astype(np.float32)
    for index, image in enumerate(blended):
        averages = [(values[a] + values[b]) / 2 for a, b in pairs if a == index]
        assert min(np.abs(image - average).max() for average in averages) <= 0.5
    if kind is np.float32:
        assert noise.mean((2, 3)) == pytest.approx(inputs.mean((2, 3)), abs=20)
        assert noise.std((2, 3)) == pytest.approx(inputs.std((2, 3)), rel=0.15)


@pytest.mark.parametrize("sides", [(9, 8, 11), (2, 8, 8), (17,)])
def test_altered_volumes_and_signals_keep_their_values(sides: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 2, *sides)).astype(np.float32)
    tiled, blended, noise = altered(inputs, rng)
    for each in (tiled, blended, noise):
        assert (each.shape, each.dtype) == (inputs.shape, inputs.dtype)
        assert (each != inputs).reshape(5, -1).any(1).all()
    flat, original = tiled.reshape(5, 2, -1), inputs.reshape(5, 2, -1)
    np.testing.assert_array_equal(np.sort(flat), np.sort(original))
    beside = np.diff(flat, axis=2)  # most neighbors along the last axis stay neighbors
    known = np.diff(original, axis=2)
    assert np.isin(beside.round(5), known.round(5)).mean() > 0.4
    assert noise.mean() == pytest.approx(inputs.mean(), abs=0.3)


class Stripes:
    """A runtime whose features are an image's rows and columns of mean brightness."""

    name, device, input_type = "by hand", "cpu", "float32"

    def __init__(self, *, sure: bool) -> None:
        self.sure = sure

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        contrast = batch.mean(3).std((1, 2)) if self.sure else np.ones(len(batch))
        return np.stack([contrast, -contrast], axis=1).astype(np.float32)

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([batch.mean(2), batch.mean(3)], axis=2)[:, 0] + np.float32(1e-3)


def stripes(count: int, *, sure: bool) -> tuple[Classifier, ImageDataset, ImageDataset]:
    rng = np.random.default_rng(0)
    rows = np.arange(16)[None, :, None] % 4 < 2
    images = np.where(rows, 200, 20) + rng.integers(0, 20, (count, 16, 16))
    dataset = ImageDataset(
        classes=("a", "b"),
        names=[f"{index:03}" for index in range(count)],
        labels=np.arange(count) % 2,
        splits=np.array(["train", "val"] * (count // 2)),
        images=images.astype(np.uint8),
    )
    classifier = Classifier(
        architecture=config_to_dict(model_config("resnet20", num_classes=2, in_chans=1)),
        classes=("a", "b"),
        preprocessing=Preprocessing(size=16, channels=1, mean=(0,), std=(1,)),
        provenance={},
        runtime=Stripes(sure=sure),  # type: ignore[arg-type]
    )
    return classifier, dataset.split("val"), dataset.split("train")


def test_the_score_with_the_largest_area_is_chosen_and_its_values_are_kept() -> None:
    classifier, validation, training = stripes(60, sure=False)
    seen: list[tuple[int, int]] = []
    fitted = fit_outlier_detector(
        classifier, validation, training, batch_size=16, progress=lambda *done: seen.append(done)
    )
    assert (fitted.score, fitted.auroc["energy"], fitted.auroc["max-logit"]) == ("knn", 0.5, 0.5)
    assert seen[-1] == (60, 60)
    assert fitted.reference is not None
    inputs = classifier.preprocess(list(validation.images))
    reference = classifier.embed(list(training.images)).astype(np.float64)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.reference, reference, atol=1e-3)
    usual = outlier_scores(
        "knn", classifier.logits(inputs), classifier.runtime.embed(inputs), fitted.reference
    )
    assert fitted.calibration.scores == pytest.approx(np.sort(usual), abs=1e-6)
    # The area is scikit-learn's for altered images that are drawn again.
    changed = np.concatenate(altered(inputs, np.random.default_rng(5)))
    odd = outlier_scores("knn", changed, classifier.runtime.embed(changed), fitted.reference)
    area = roc_auc_score(np.repeat([0, 1], [len(usual), len(odd)]), np.concatenate([usual, odd]))
    assert fitted.auroc["knn"] == pytest.approx(area, abs=0.1)


def test_without_training_images_the_logits_decide_and_noise_is_rejected() -> None:
    classifier, validation, _ = stripes(60, sure=True)
    fitted = fit_outlier_detector(classifier, validation, None)
    assert fitted.score in ("energy", "max-logit")
    assert fitted.reference is None
    noise = classifier.preprocess(list(np.full((5, 16, 16), 100, np.uint8)))
    assert (fitted.p_values(classifier.logits(noise), None) == 1 / 31).all()


def test_altered_images_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large images they would take gigabytes; what is computed of them is the same."""
    classifier, validation, training = stripes(120, sure=True)
    made: list[weakref.ref[NDArray[Any]]] = []
    copies: list[NDArray[Any]] = []

    def watched(inputs: NDArray[Any], rng: np.random.Generator) -> list[NDArray[Any]]:
        assert sum(each() is not None for each in made) <= 1  # the one that was used last
        batches = altered(inputs, rng)
        made.extend(map(weakref.ref, batches))
        copies.extend(batch.copy() for batch in batches)
        return batches

    monkeypatch.setattr(outliers, "altered", watched)
    fitted = fit_outlier_detector(classifier, validation, training, batch_size=16)
    assert [len(copy) for copy in copies] == [16] * 9 + [12] * 3
    runtime, inputs = classifier.runtime, classifier.preprocess(list(validation.images))
    changed = np.concatenate(copies)
    labels = np.repeat([0, 1], [len(inputs), len(changed)])
    for name in ("energy", "max-logit"):
        scores = [outlier_scores(name, runtime.logits(each)) for each in (inputs, changed)]
        assert fitted.auroc[name] == roc_auc_score(labels, np.concatenate(scores))
    reference = runtime.embed(classifier.preprocess(list(training.images)))
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    scores = [
        outlier_scores("knn", runtime.logits(each), runtime.embed(each), reference.astype(np.float16))
        for each in (inputs, changed)
    ]
    assert fitted.auroc["knn"] == roc_auc_score(labels, np.concatenate(scores))
