"""The sections of a report that are about labels, for a run with any number of labels an image.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from skipnets.axes import worded
from skipnets.classifier import Classifier
from skipnets.data.multi_label import labels_from_texts
from skipnets.data.splits import SPLITS
from skipnets.evaluation.multi_label import MultiLabelMetrics, measure_labels
from skipnets.evaluation.reliability import binary_reliability
from skipnets.evaluation.saving import inputs_noun
from skipnets.report import charts
from skipnets.report.gallery import Thumbnails
from skipnets.report.label_results import LabelResults
from skipnets.report.rendering import area, decimal
from skipnets.tables import percent

__all__ = ["label_sections"]

_GALLERY = 12  # images in each gallery with Grad-CAM
_OF_A_LABEL = 3  # of them, for one label
_SINGLE_CURVES = 24  # labels with charts of their own
_RULES = {"f1": "the highest F1 score", "youden": "the highest sensitivity plus specificity"}
_MEANINGS = {
    "auroc": ("Mean AUROC", area, "chance that an image with a label is ranked above one without"),
    "average_precision": ("Mean average precision", decimal, "area under precision over recall"),
    "f1": ("Mean F1", decimal, "at the thresholds of the labels"),
    "sensitivity": ("Mean sensitivity", percent, "share of the images with a label that are found"),
    "specificity": ("Mean specificity", percent, "share of those without it that are left out"),
}


def label_sections(
    results: LabelResults,
    classifier: Classifier,
    thumbnails: Thumbnails,
    splits: Mapping[str, tuple[str, str]],
    progress: Callable[[str, int, int], object],
) -> dict[str, Any]:
    """What the template "labels.html.jinja" shows, beside training and unreadable files.

    Args:
        results: The predictions.
        classifier: Whose they are.
        thumbnails: Of the images.
        splits: Name of each image → its labels and its split.
        progress: Called with the name of the current step, the number of items done and their total.
    """
    metrics = measure_labels(
        results.logits,
        results.labels,
        results.limits,
        temperature=results.temperature,
        groups=results.groups,
    )
    kind = inputs_noun(results.evaluation)
    return {
        "tiles": _tiles(metrics, results.evaluation.get("dims", 2)),
        "unit": kind if metrics.groups is None else f"{metrics.groups:,} groups of {kind}",
        "rule": (rule := classifier.provenance.get("thresholds", {})),
        "chosen_by": _RULES.get(rule.get("rule", ""), rule.get("rule", "")),
        "labels": _labels(results, metrics),
        "calibration": _calibration(results, metrics),
        "curves": _curves(results, metrics),
        "galleries": _galleries(results, thumbnails, progress),
        "balance": _balance(results, splits),
    }


def _tiles(metrics: MultiLabelMetrics, dims: int) -> list[dict[str, Any]]:
    """Means over the labels, each with its interval, and how many images are right as a whole."""
    tiles = []
    for name, (title, format_value, meaning) in _MEANINGS.items():
        interval = metrics.macro_intervals[name]
        tiles.append(
            {
                "title": title,
                "meaning": worded(meaning, dims),
                "value": format_value(metrics.macro[name]),
                "interval": None
                if interval is None
                else f"{format_value(interval[0])} to {format_value(interval[1])}",
            }
        )
    exact = {"title": "All labels right", "value": percent(metrics.exact), "interval": None}
    return [*tiles, {**exact, "meaning": worded("share of images without any mistake", dims)}]


def _labels(results: LabelResults, metrics: MultiLabelMetrics) -> list[dict[str, Any]]:
    def interval(name: str, index: int) -> list[float] | None:
        limits = metrics.intervals[name][index]
        return limits.tolist() if np.isfinite(limits).all() else None

    return [
        {
            "name": label,
            "threshold": results.thresholds[index],
            "present": int(metrics.present[index]),
            "unknown": int(metrics.unknown[index]),
            "ece": float(metrics.ece[index]),
            **{
                name: {"value": float(values[index]), "interval": interval(name, index)}
                for name, values in metrics.labels.items()
            },
        }
        for index, label in enumerate(results.classes)
    ]


def _known(results: LabelResults, index: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities of a label on the images of which it is known, and whether they have it."""
    known = np.isfinite(results.labels[:, index])
    return results.probabilities[known, index], results.labels[known, index] == 1


def _calibration(results: LabelResults, metrics: MultiLabelMetrics) -> dict[str, Any]:
    """Reliability of all labels together, and of the labels with the largest error alone."""
    known = np.isfinite(results.labels)
    pairs = binary_reliability(results.probabilities[known], results.labels[known] == 1)
    names, kind = ("probability", "share with the label", "pairs"), inputs_noun(results.evaluation)
    single = []
    for index in np.argsort(-np.nan_to_num(metrics.ece), kind="stable")[:_SINGLE_CURVES].tolist():
        probability, present = _known(results, index)
        if not len(present):
            continue
        bins = binary_reliability(probability, present)
        chart = charts.draw_reliability(bins, f"reliability-{index}", names=(*names[:2], kind))
        single.append(
            {
                "name": results.classes[index],
                "ece": bins.ece,
                "chart": Markup(chart),  # noqa: S704 - drawn here, from numbers alone
            }
        )
    return {
        "together": Markup(charts.draw_reliability(pairs, "reliability", names=names)),  # noqa: S704
        "ece": pairs.ece,
        "nll": metrics.nll,
        "single": single,
        "without": len(results.classes) - len(single),
    }


def _curves(results: LabelResults, metrics: MultiLabelMetrics) -> dict[str, Any] | None:
    """Precision-recall and ROC curves: all labels together, the hardest in color, then each label alone."""
    curves = {
        index: curve
        for index in range(len(results.classes))
        if (curve := charts.one_class_curves(*_known(results, index)))
    }
    if not curves:
        return None
    hardest = sorted(curves, key=lambda index: curves[index].average_precision)
    colored = dict(zip(hardest, charts.SERIES, strict=False))
    together = charts.draw_curves([(curves[index], colored.get(index)) for index in curves], "curves")

    def entry(index: int) -> dict[str, Any]:
        return {
            "name": results.classes[index],
            "average_precision": curves[index].average_precision,
            "auroc": metrics.labels["auroc"][index],
        }

    return {
        "precision_recall": Markup(together[0]),  # noqa: S704
        "roc": Markup(together[1]),  # noqa: S704
        "legend": [entry(index) | {"series": f"c{number}"} for number, index in enumerate(colored, start=1)],
        "others": len(curves) - len(colored),
        "single": [
            entry(index) | {"chart": Markup(charts.draw_one_class(curves[index], f"curves-{index}"))}  # noqa: S704
            for index in hardest[:_SINGLE_CURVES]
        ],
        "without": max(len(curves) - _SINGLE_CURVES, 0),
    }


def _galleries(
    results: LabelResults, thumbnails: Thumbnails, progress: Callable[[str, int, int], object]
) -> list[dict[str, Any]]:
    """Labels that were found or missed wrongly, those furthest from their thresholds first."""
    excess = results.probabilities - results.limits
    kinds = (
        ("Found, but not there", "found", (excess >= 0) & (results.labels == 0), -excess),
        ("There, but missed", "missed", (excess < 0) & (results.labels == 1), excess),
    )
    chosen = [(title, kind, _worst(wrong, key)) for title, kind, wrong, key in kinds]
    total, done = sum(len(pairs) for _, _, pairs in chosen), 0
    galleries = []
    for title, kind, pairs in chosen:
        shown = []
        for position, index in pairs:
            progress("Grad-CAM", done, total)
            image, overlays = thumbnails.explained(position, [results.classes[index]])
            present = results.labels[position] == 1
            shown.append(
                {
                    "name": results.names[position],
                    "image": image,
                    "overlay": overlays[0] if overlays else None,
                    "label": results.classes[index],
                    "probability": float(results.probabilities[position, index]),
                    "threshold": float(results.limits[position, index]),
                    "present": [
                        name for name, has in zip(results.classes, present.tolist(), strict=True) if has
                    ],
                }
            )
            done += 1
        galleries.append({"title": title, "kind": kind, "images": shown, "most": _GALLERY})
    return galleries


def _worst(wrong: NDArray[np.bool_], key: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Up to `_GALLERY` pairs of image and label, `_OF_A_LABEL` of each label, the lowest keys first."""
    images, labels = np.nonzero(wrong)
    taken: list[tuple[int, int]] = []
    count = np.zeros(wrong.shape[1], np.int64)
    for place in np.argsort(key[images, labels], kind="stable"):
        image, label = int(images[place]), int(labels[place])
        if count[label] < _OF_A_LABEL and len(taken) < _GALLERY:
            count[label] += 1
            taken.append((image, label))
    return taken


def _balance(results: LabelResults, splits: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Number of images that have each label in every split."""
    counts = np.stack(
        [
            (
                labels_from_texts([text for text, of in splits.values() if of == split], results.classes) == 1
            ).sum(0)
            for split in SPLITS
        ],
        axis=1,
    )
    return {
        "rows": [
            {"name": name, "counts": row.tolist(), "all": int(row.sum())}
            for name, row in zip(results.classes, counts, strict=True)
        ],
        "most": int(counts.sum(1).max()),
        "splits": SPLITS,
    }
