"""Predictions of images from what a classifier computes of them.

Needs no torch.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skipnets.prediction import Prediction, RegressionPrediction
from skipnets.probabilities import NOT_FINITE
from skipnets.selection import Selection, needs_features

if TYPE_CHECKING:
    from skipnets.classifier import Classifier
    from skipnets.data.loading import ImageBatch

__all__ = ["failed_prediction", "make_prediction", "outputs_with_uncertainty", "predictions"]


def predictions(
    classifier: Classifier,
    batches: Iterable[ImageBatch],
    top_k: int,
    *,
    coverage: float | None,
    reject: float | None,
) -> Iterator[Prediction]:
    """The prediction of each image, in their order; those that cannot be read, or computed, have an error.

    Args:
        classifier: What predicts.
        batches: As `skipnets.data.loading.evaluation_batches` reads them.
        top_k: As of `Classifier.predict`.
        coverage: Likewise; `skipnets.selection.check_calibrated` says whether the classifier can.
        reject: Likewise.
    """
    for batch in batches:
        rows = iter(
            outputs_with_uncertainty(classifier, batch.inputs, coverage=coverage, reject=reject)
            if len(batch.inputs)
            else ()
        )
        for source, error in batch.outcomes():
            if error is not None:
                yield failed_prediction(classifier, source, error)
                continue
            outputs, uncertainty = next(rows)
            if not np.isfinite(outputs).all():
                yield failed_prediction(classifier, source, f"{source}: {NOT_FINITE}")
                continue
            yield replace(make_prediction(classifier, source, outputs, top_k), **uncertainty)


def make_prediction(
    classifier: Classifier, source: str, outputs: NDArray[np.float64], top_k: int = 1
) -> Prediction:
    """The prediction for one image from its probabilities, or numbers.

    Args:
        classifier: What computed them.
        source: The image's name.
        outputs: (classes,) a row of `Classifier.outputs`.
        top_k: As of `Classifier.predict`.
    """
    classes = classifier.classes
    if classifier.task == "regression":
        values = tuple(zip(classes, outputs.tolist(), strict=True))
        return RegressionPrediction(source=source, values=values)
    if classifier.thresholds is not None:
        ranking = _ranking(classes, outputs, len(classes))
        threshold = dict(zip(classes, classifier.thresholds, strict=True))
        labels = tuple(name for name, probability in ranking if probability >= threshold[name])
        return Prediction(source=source, labels=labels, ranking=ranking)
    ranking = _ranking(classes, outputs, top_k)
    label, probability = ranking[0]
    return Prediction(source=source, label=label, probability=probability, labels=(label,), ranking=ranking)


def failed_prediction(classifier: Classifier, source: str, error: str) -> Prediction:
    """The prediction for an image that failed.

    Args:
        classifier: What should have predicted it.
        source: The image's name.
        error: Why it failed.
    """
    kind = RegressionPrediction if classifier.task == "regression" else Prediction
    return kind(source=source, error=error)


def outputs_with_uncertainty(
    classifier: Classifier,
    batch: NDArray[Any],
    *,
    coverage: float | None = None,
    reject: float | None = None,
) -> list[tuple[NDArray[np.float64], dict[str, Any]]]:
    """`Classifier.outputs` with what is asked for besides: for each image a row, and fields of `Prediction`.

    Args:
        classifier: What computes them.
        batch: (N, C, H, W), preprocessed.
        coverage: As of `Classifier.predict`; `skipnets.selection.check_calibrated` says whether the
            classifier can.
        reject: Likewise.

    Returns:
        N pairs of (classes,) probabilities or numbers, which need not be finite, and of `prediction_set`
        or `intervals`, `p_value` and `rejected`, where they were asked for.
    """
    logits = classifier.logits(batch)
    outputs = classifier.outputs_of(logits)
    features = classifier.embed_batch(batch) if needs_features(classifier, reject) else None
    selection = Selection.of(classifier, logits, features, coverage=coverage, reject=reject)
    fields: list[dict[str, Any]] = [{} for _ in outputs]
    if selection.intervals is not None:
        for row, ends in zip(fields, selection.intervals.tolist(), strict=True):
            row["intervals"] = tuple(
                (name, low, high) for name, (low, high) in zip(classifier.classes, ends, strict=True)
            )
    if selection.sets is not None:
        for row, chosen, shares in zip(fields, selection.sets, outputs, strict=True):
            ranking = _ranking(classifier.classes, shares, int(chosen.sum()))
            row["prediction_set"] = tuple(name for name, _ in ranking)
    if selection.p_values is not None and selection.rejected is not None:
        pairs = zip(selection.p_values.tolist(), selection.rejected.tolist(), strict=True)
        for row, (p_value, rejected) in zip(fields, pairs, strict=True):
            row |= {"p_value": p_value, "rejected": rejected}
    return list(zip(outputs, fields, strict=True))


def _ranking(
    classes: tuple[str, ...], probabilities: NDArray[np.float64], top_k: int
) -> tuple[tuple[str, float], ...]:
    """The most probable classes with their probabilities, best first."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple((classes[index], float(probabilities[index])) for index in best)
