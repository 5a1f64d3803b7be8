"""What an audit finds out about labels where an image has any number of them.

Shapes: N images of the dataset, n of them with a prediction, K labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipnets.data.dataset import ImageDataset
from skipnets.data.multi_label import label_text
from skipnets.evaluation.calibration import NoTemperatureError, fit_label_temperature
from skipnets.probabilities import sigmoid
from skipnets.report.findings import Finding
from skipnets.report.label_errors import LEAST_KAPPA, LabelCheck, cohen_kappa, find_label_errors
from skipnets.report.predictions import UnseenPredictions

__all__ = ["check_labels", "co_occurrence", "label_counts"]

_LEAST, _MOST = 1e-12, 1 - 1e-12


def check_labels(dataset: ImageDataset, predictions: UnseenPredictions) -> tuple[list[Finding], LabelCheck]:
    """Marks that the predictions contradict, each label judged alone and over the images that it is known of.

    A label whose marks the predictions hardly follow is not judged. Agreement is that of the marks with the
    predictions at the probability from which on as many images have the label as are marked so: at one half,
    a rare label would be predicted nowhere.

    Args:
        dataset: With several labels an image.
        predictions: Of its images.
    """
    findings, withheld = [], []
    agreed: list[NDArray[np.bool_]] = []
    marks: list[NDArray[np.int64]] = []
    found: list[NDArray[np.int64]] = []
    for name in dataset.classes:
        if name not in predictions.classes:
            continue
        given = dataset.labels[predictions.images, dataset.classes.index(name)]
        known = np.isfinite(given)
        labels = given[known].astype(np.int64)
        if len(np.unique(labels)) < 2:
            continue  # nothing to tell apart
        scores = predictions.probabilities[known, predictions.classes.index(name)]
        predicted = _as_many(scores, int(labels.sum()))
        marks.append(labels)
        found.append(predicted)
        agreed.append(labels == predicted)
        if cohen_kappa(labels, predicted, 2) < LEAST_KAPPA:
            withheld.append(name)
            continue
        findings += _errors_of(dataset, name, predictions.images[known], labels, scores)
    together = (np.concatenate(marks), np.concatenate(found)) if marks else None
    check = LabelCheck(
        source=predictions.source,
        images=len(predictions.images),
        trained_on=predictions.trained_on,
        agreement=float(np.concatenate(agreed).mean()) if agreed else None,
        kappa=cohen_kappa(*together, 2) if together else None,
        labels_withheld=tuple(withheld),
    )
    return ([] if check.withheld else findings), check


def _as_many(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """1 for as many images as given, those with the highest scores, and for those that equal the last."""
    return (scores >= np.sort(scores)[len(scores) - count]).astype(np.int64)


def _errors_of(
    dataset: ImageDataset,
    name: str,
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
) -> list[Finding]:
    """The marks of one label that are probably wrong."""
    clipped = np.clip(scores, _LEAST, _MOST)
    logits = np.log(clipped) - np.log1p(-clipped)
    try:
        present = sigmoid(logits, fit_label_temperature(logits[:, None], labels[:, None].astype(np.float64)))
    except NoTemperatureError:
        present = clipped
    column = dataset.classes.index(name)
    findings = []
    for error in find_label_errors(labels, np.stack([1 - present, present], axis=1)):
        image = int(images[error.image])
        flipped = dataset.labels[image].copy()
        flipped[column] = 1 - flipped[column]
        state = ("absent", "present")[labels[error.image]]
        detail = f"{name}: {present[error.image]:.1%}, marked {state}"
        findings.append(
            Finding(
                "label-error",
                image,
                dataset.names[image],
                detail,
                error.of_label,
                label=label_text(flipped, dataset.classes),
            )
        )
    return findings


def label_counts(dataset: ImageDataset) -> list[dict[str, Any]]:
    """Of each label, how many images have it, lack it or are not known to, and which others occur with it."""
    together = co_occurrence(dataset)
    return [
        {
            "name": name,
            **{
                state: int((dataset.labels[:, index] == value).sum())
                for state, value in (("present", 1), ("absent", 0))
            },
            "unknown": int(np.isnan(dataset.labels[:, index]).sum()),
            "together_with": {
                other: count
                for other, count in zip(dataset.classes, together[index].tolist(), strict=True)
                if count and other != name
            },
        }
        for index, name in enumerate(dataset.classes)
    ]


def co_occurrence(dataset: ImageDataset) -> NDArray[np.int64]:
    """(K, K) how many images have both of two labels; on the diagonal, how many have one."""
    present = (dataset.labels == 1).astype(np.int64)
    return present.T @ present
