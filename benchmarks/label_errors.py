"""How well swapped labels are found: precision and recall, with and without calibration of the probabilities.

    python benchmarks/label_errors.py
    python benchmarks/label_errors.py cifar10-jpeg/test --model resnet20.safetensors --images 4000

A share of the labels of scikit-learn's digits is swapped for others, at random; a quick model (logistic
regression on kernel features) predicts all images out of fold. For a folder, a model file predicts its images
instead, which it must not have been trained on. Of each share, means over seeds:

- top: the precision of as many images as were swapped, those with the least probable labels;
- named, precision, recall: of what `skipnets audit` names as probable label errors;
- corrected, right: how many labels it corrects without asking, and the share of these that is then right.

"raw" is the same without calibrating the probabilities first.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import cleanlab
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

import skipnets
from skipnets.evaluation.evaluating import evaluate_classes
from skipnets.report.auditing import CERTAIN
from skipnets.report.label_errors import calibrated, find_label_errors

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def swap(labels: Labels, classes: int, share: float, seed: int) -> Labels:
    """The labels, a share of them exchanged for another class each."""
    generator = np.random.default_rng(seed)
    wrong = generator.choice(len(labels), round(share * len(labels)), replace=False)
    swapped = labels.copy()
    swapped[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return swapped


def digits(shares: list[float], seeds: int) -> Iterator[tuple[float, Labels, Labels, Probabilities]]:
    images, labels = load_digits(return_X_y=True)
    model = make_pipeline(
        Nystroem(gamma=0.05, n_components=300, random_state=0), LogisticRegression(max_iter=200, C=10)
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for share in shares:
        for seed in range(seeds):
            given = swap(labels, 10, share, seed)
            predicted = cross_val_predict(model, images / 16, given, cv=folds, method="predict_proba")
            yield share, labels, given, predicted


def folder(
    path: Path, model: Path, images: int, shares: list[float], seeds: int
) -> Iterator[tuple[float, Labels, Labels, Probabilities]]:
    dataset = skipnets.data.open_dataset(path, fractions=None)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:images]
    evaluation = evaluate_classes(model, dataset.select(np.sort(chosen)), what="label errors", split="all")
    for share in shares:
        for seed in range(seeds):
            given = swap(evaluation.labels, len(evaluation.classes), share, seed)
            yield share, evaluation.labels, given, evaluation.probabilities.astype(np.float64)


def measured(true: Labels, given: Labels, probabilities: Probabilities, *, raw: bool) -> dict[str, float]:
    wrong = true != given
    probabilities = probabilities if raw else calibrated(given, probabilities)
    named = find_label_errors(given, probabilities)
    images = [error.image for error in named]
    corrected = [error for error in named if error.of_suggested >= CERTAIN]
    order = np.argsort(probabilities[np.arange(len(given)), given], kind="stable")[: wrong.sum()]
    return {
        "top": float(wrong[order].mean()) if wrong.any() else float("nan"),
        "named": len(named),
        "precision": float(wrong[images].mean()) if named else float("nan"),
        "recall": float(wrong[images].sum() / wrong.sum()) if wrong.any() else float("nan"),
        "corrected": len(corrected),
        "right": float(np.mean([true[error.image] == error.suggested for error in corrected]))
        if corrected
        else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.03, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    if arguments.folder is None:
        cases = digits(arguments.shares, arguments.seeds)
    elif arguments.model is None:
        parser.error("--model must be given with a folder")
    else:
        cases = folder(arguments.folder, arguments.model, arguments.images, arguments.shares, arguments.seeds)
    rows: dict[tuple[float, str], list[dict[str, float]]] = {}
    for share, true, given, probabilities in cases:
        for raw in (True, False):
            key = share, "raw" if raw else "calibrated"
            rows.setdefault(key, []).append(measured(true, given, probabilities, raw=raw))
    for (share, kind), values in rows.items():
        means = {name: round(float(np.mean([row[name] for row in values])), 3) for name in values[0]}
        print(json.dumps({"swapped": share, "probabilities": kind, "seeds": len(values), **means}))
    machine = platform.processor() or platform.machine()
    print(json.dumps({"machine": machine, "cleanlab": cleanlab.__version__, "numpy": np.__version__}))


if __name__ == "__main__":
    main()
