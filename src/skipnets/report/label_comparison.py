"""Compare multi-label runs: AUROC of each label by DeLong's test, means over the labels by the bootstrap.

Shapes: N images, K labels, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipnets.data.listing import counted
from skipnets.errors import UserError, listed
from skipnets.evaluation.delong import delong_test
from skipnets.evaluation.intervals import Interval
from skipnets.evaluation.multi_label import group_numbers
from skipnets.evaluation.saving import inputs_noun
from skipnets.report.label_results import LabelResults, read_label_results
from skipnets.report.pairing import PairedComparison, caveats, difference_table, holm, matched, verdict

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LabelComparison", "LabelDifference", "compare_labels"]

_FEWEST = 2  # groups with images that have a label, and that do not, for its AUROC to have a variance


@dataclass(frozen=True, kw_only=True)
class LabelDifference:
    """Difference between a run and the first run in the AUROC of one label.

    Attributes:
        run: Name of the run.
        label: The label.
        first: AUROC of the first run.
        auroc: AUROC of the run.
        interval: 95% interval of the run minus the first run.
        p: The p-value of DeLong's test, adjusted for all labels and runs (Holm).
        verdict: "better", "worse", or "within noise" (p is at least 0.05).
    """

    run: str
    label: str
    first: float
    auroc: float
    interval: Interval
    p: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class LabelComparison(PairedComparison):
    """AUROCs of the labels in several runs, and their differences from the first.

    Attributes:
        differences: One for each label of each run after the first.
    """

    differences: tuple[LabelDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"task": "multi-label", **super().to_dict()}

    def difference_table(self, run: str) -> Table:
        """The table of a run's differences from the first."""
        return difference_table(
            "label",
            "AUROC",
            self.runs[0],
            run,
            [
                (each.label, each.first, each.auroc, each.interval, each.p, each.verdict)
                for each in self.differences
                if each.run == run
            ],
            "{:.4f}".format,
        )


def compare_labels(folders: Sequence[Path], names: Sequence[str]) -> LabelComparison:
    """Compare multi-label runs with the first of them.

    Args:
        folders: Two or more folders with evaluations of multi-label classifiers.
        names: What they are called.

    Raises:
        UserError: If their images or labels differ.
    """
    every = [read_label_results(folder) for folder in folders]
    first, *others = every
    units, _ = group_numbers(first.groups, len(first.names))
    differences, left_out = [], []
    for name, other in zip(names[1:], others, strict=True):
        aligned = _aligned(first, other)
        for index, label in enumerate(first.classes):
            known = np.isfinite(first.labels[:, index])
            present = first.labels[known, index] == 1
            of = units[known]
            if min(len(np.unique(of[present])), len(np.unique(of[~present]))) < _FEWEST:
                left_out.append(label)
                continue
            tested = delong_test(first.logits[known, index], aligned.logits[known, index], present, of)
            differences.append(
                LabelDifference(
                    run=name,
                    label=label,
                    first=tested.first,
                    auroc=tested.second,
                    interval=tested.interval,
                    p=tested.p,
                    verdict="",
                )
            )
    adjusted = holm([each.p for each in differences])
    notes, kind = caveats(every, names), inputs_noun(first.evaluation)
    notes.append(
        f"p-values are DeLong's, adjusted (Holm) for {counted(len(differences), 'comparison')}; intervals "
        "are not"
    )
    if first.groups is not None:
        notes.append(f"{kind} of one group are taken together (Obuchowski's form of DeLong's test)")
    if left_out:
        notes.append(f"too few {kind} with or without {listed(sorted(set(left_out)))} to compare its AUROC")
    return LabelComparison(
        runs=tuple(names),
        data=str(first.evaluation["data"]),
        split=str(first.evaluation["split"]),
        images=len(first.names),
        differences=tuple(
            replace(each, p=p, verdict=verdict(p, better=each.auroc > each.first))
            for each, p in zip(differences, adjusted, strict=True)
        ),
        notes=tuple(notes),
        dims=first.evaluation.get("dims", 2),
    )


def _aligned(first: LabelResults, other: LabelResults) -> LabelResults:
    """The other run's predictions in the first run's order of images and labels.

    Raises:
        UserError: If these are not the same.
    """
    order, columns = matched(first, other)
    aligned = replace(
        other,
        classes=first.classes,
        names=first.names,
        labels=other.labels[order][:, columns],
        logits=other.logits[order][:, columns],
    )
    differing = ~np.isclose(aligned.labels, first.labels, equal_nan=True)
    if differing.any():
        image, label = (int(place[0]) for place in np.nonzero(differing))
        raise UserError(
            f"{first.folder} and {other.folder} cannot be compared: "
            f"the label {first.classes[label]} of {first.names[image]} is not the same in both"
        )
    return aligned
