"""Audit a dataset: what may be wrong with its images, labels and splits, and a manifest without it.

Shapes: N images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skipnets.axes import INPUTS
from skipnets.classifier import Classifier
from skipnets.data.appearance import measure_appearance
from skipnets.data.contents import Content, contents
from skipnets.data.copies import LEAST_SIDE, MOST, find_copies
from skipnets.data.dataset import ImageDataset
from skipnets.data.listing import counted
from skipnets.data.manifest_files import MissingFilesError
from skipnets.data.options import DataOptions
from skipnets.data.raster import Header
from skipnets.data.sources import find_with_own_splits
from skipnets.data.survey import Survey, survey
from skipnets.description import CLASS_NOUNS
from skipnets.errors import UserError, check_at_least_1, listed
from skipnets.evaluation.tables import write_table
from skipnets.report.findings import (
    KINDS,
    Action,
    Finding,
    actions,
    appearance_findings,
    class_findings,
    content_of,
    copy_findings,
    group_findings,
    size_findings,
    sorted_findings,
)
from skipnets.report.label_audit import check_labels, label_counts
from skipnets.report.label_errors import (
    LEAST_KAPPA,
    LabelCheck,
    calibrated,
    cohen_kappa,
    find_label_errors,
)
from skipnets.report.number_audit import NumberCheck, check_numbers, odd_numbers, withheld_note
from skipnets.report.predictions import TABLES, UnseenPredictions, predict_unseen, read_prediction_table
from skipnets.tables import Display, make_table, properties_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Audit", "LabelCheck", "audit"]

# Calibrated probability from which a label is corrected. With 3% of the labels wrong, 89% of the corrections
# are right if the model is right in 81% of the images, and all if in 97%; see benchmarks/label_errors.py.
CERTAIN = 0.95

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit(Display):
    """What an audit found; it prints as a table.

    Attributes:
        data: What was opened.
        dataset: Its N images, with `copies`; where the data do not give splits, these are "".
        survey: What the dataset holds.
        findings: Kind → findings, most serious first. Kinds without findings are there, too.
        label_check: How labels or numbers were checked; None if they were not, for lack of predictions.
        options: How the data were read.
    """

    data: str
    dataset: ImageDataset
    survey: Survey
    findings: Mapping[str, Sequence[Finding]]
    label_check: LabelCheck | NumberCheck | None
    options: DataOptions

    @property
    def has_splits(self) -> bool:
        """Whether the data say which images train, validate and test."""
        return bool((self.dataset.splits != "").any())

    @property
    def looked_for(self) -> list[str]:
        """The kinds of findings that could be looked for."""
        unchecked = self.label_check is None or self.label_check.withheld
        numbers = self.dataset.regression
        without = {
            "label-error": unchecked or numbers,
            "number-error": unchecked or not numbers,
            "odd-number": not numbers,
            "spelling": numbers,
            "small-class": numbers,
            "leak": not self.has_splits,
            "divided-group": not self.has_splits or self.dataset.groups is None,
            "near-copy": len(self.dataset) > MOST or self._tiny == len(self.survey.headers),
            "blurred": self._tiny == len(self.survey.headers),
        }
        return [kind for kind in KINDS if not without.get(kind, False)]

    @property
    def _tiny(self) -> int:
        """How many headers are of images that are too small to be compared."""
        return sum(min(header.sides) < LEAST_SIDE for header in self.survey.headers)

    @property
    def notes(self) -> list[str]:
        """What was not looked for, and what to keep in mind, one sentence each."""
        notes = []
        check = self.label_check
        what = "numbers" if self.dataset.regression else "labels"
        errors = "unlikely numbers" if self.dataset.regression else "label errors"
        if check is None:
            notes.append(
                f"{errors} were not looked for: that takes a model that was not trained on these images, "
                "or out-of-fold predictions (skipnets train DATA --folds 5)"
            )
        else:
            left = len(self.dataset) - check.images - check.trained_on
            if check.trained_on:
                notes.append(
                    f"{what} of {check.images:,} images were checked; {check.trained_on:,} others were "
                    "trained on, which takes out-of-fold predictions (skipnets train DATA --folds 5)"
                )
            if left:
                notes.append(f"{what} of {counted(left, 'image')} were not checked: there is no prediction")
            if check.withheld:
                notes.append(f"{errors} are not listed: {check.reason}")
            elif isinstance(check, NumberCheck):
                notes += [note] if (note := withheld_note(check)) else []
            elif check.labels_withheld:
                notes.append(
                    f"errors of {listed(check.labels_withheld)} are not listed: the model agrees too little "
                    f"with these labels (Cohen's kappa below {LEAST_KAPPA})"
                )
        if not self.has_splits:
            notes.append("leaks were not looked for: the data have no splits")
        if self._tiny:
            all_or_some = "all" if self._tiny == len(self.survey.headers) else f"{self._tiny:,}"
            notes.append(
                f"near copies and blur were not looked for in images of less than {LEAST_SIDE} pixels: "
                f"{all_or_some} of them"
            )
        if len(self.dataset) > MOST:
            notes.append(f"near copies were not looked for: more than {MOST:,} images")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values for JSON."""
        check = self.label_check
        return {
            "data": self.data,
            "images": len(self.dataset),
            "targets" if self.dataset.regression else "classes": len(self.dataset.classes),
            "splits": dict(Counter(split for split in self.dataset.splits.tolist() if split)),
            "findings": {kind: len(found) for kind, found in self.findings.items()},
            "images_with_findings": self.affected,
            "label_check": None if check is None else check.to_dict(),
            **({"labels": label_counts(self.dataset)} if self.dataset.multi_label else {}),
            "passed_over": dict(self.survey.passed_over.most_common()),
            "notes": self.notes,
            "warnings": list(self.survey.warnings),
        }

    @property
    def affected(self) -> int:
        """How many images have at least one finding."""
        return len(
            {each.image for found in self.findings.values() for each in found if each.image is not None}
        )

    def tables(self) -> list[Table]:
        """What `print` and a notebook show."""
        check = self.label_check
        properties = {
            "data": self.data,
            "images": f"{len(self.dataset):,} ({self.affected:,} with a finding)",
            CLASS_NOUNS[self.dataset.task]: f"{len(self.dataset.classes):,}",
        }
        if isinstance(check, NumberCheck):
            properties["predictions"] = (
                f"{check.agreed} on {counted(check.images, 'image')}, by {check.source}"
            )
        elif check is not None and check.agreement is not None:
            if self.dataset.multi_label:
                agreed = f"{check.agreement:.1%} of all marks of {counted(check.images, 'image')}"
            else:
                agreed = f"{check.agreement:.1%} of {check.images:,}"
            properties["agreement" if self.dataset.multi_label else "labels"] = (
                f"{agreed} as predicted by {check.source}"
            )
        remarks = properties_table(
            [
                *(("note", note) for note in self.notes),
                *(("warning", warning) for warning in self.survey.warnings),
            ]
        )
        rows = [
            [KINDS[kind].title, f"{len(found):,}", actions(found)]
            for kind, found in self.findings.items()
            if found
        ]
        found = make_table({"finding": "left", "count": "right", "with --write": "left"}, rows)
        return [properties_table(properties), *([found] if rows else []), remarks]

    def write_findings(self, path: str | os.PathLike[str]) -> None:
        """Write all findings as a table, one a row.

        Args:
            path: Ends in .csv, .jsonl or .parquet.

        Raises:
            UserError: It cannot be written.
        """
        dataset = self.dataset
        findings = [finding for found in self.findings.values() for finding in found]
        labels = dataset.label_names

        def label(image: int | None) -> str:
            return "" if image is None else labels[image]

        def split(image: int | None) -> str:
            return "" if image is None else str(dataset.splits[image])

        write_table(
            path,
            {
                "kind": [each.kind for each in findings],
                "name": [each.name for each in findings],
                "label": [label(each.image) for each in findings],
                "split": [split(each.image) for each in findings],
                "detail": [each.detail for each in findings],
                "suggested_label": [each.label or "" for each in findings],
                "copy_of": ["" if each.other is None else dataset.names[each.other] for each in findings],
                "copy_label": [label(each.other) for each in findings],
                "copy_split": [split(each.other) for each in findings],
                "action": [each.action for each in findings],
            },
        )

    def write_page(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        """Write the findings as one self-contained HTML file, with thumbnails of the most serious ones.

        Args:
            path: Ends in .html.
            progress: Called with the name of the current step, the number of items done and their total.

        Raises:
            UserError: It cannot be written.
        """
        from skipnets.report.audit_page import write_audit_page

        write_audit_page(self, path, progress)

    def write_manifest(self, path: str | os.PathLike[str], *, drop: Collection[str] = ()) -> None:
        """Write a corrected manifest, which `open_dataset` and training take as it is.

        Columns: path, label, split where the data give splits, split_group where there are copies or groups
        (which stay in one split), given_label, reason (what was found, and what was done about it).

        Args:
            path: A .csv file.
            drop: Further kinds of findings whose images are left out, of `KINDS`.

        Raises:
            UserError: It cannot be written, or the images do not lie in files of their own.
        """
        from skipnets.report.correction import write_manifest

        write_manifest(self, path, drop=drop)


def audit(
    data: ImageDataset | str | os.PathLike[str],
    model: str | os.PathLike[str] | Classifier | None = None,
    *,
    options: DataOptions | None = None,
    download: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    opened: Callable[[ImageDataset], object] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Look for what may be wrong with a dataset: files, images, copies, classes, splits and labels.

    Nothing is changed. Copies are equal files and, among up to 100,000 images of at least 16 pixels a side,
    near copies: one image saved again, resized, brightened, cropped to nine tenths or mirrored, by aligned
    thumbnails and, where both images have at least 64 pixels a side, by their details as well. Labels are
    checked where there are predictions by a model that was not trained on the images; so are numbers to
    predict, those that are far from all others without.

    Args:
        data: A folder, a manifest, a named dataset, or an open dataset, whose splits then count as given.
        model: A run folder, a model file, an export, a classifier, or a table of predictions (.parquet, .csv
            or .jsonl with a column path and one for each class or target, called "p:NAME" or NAME). Of a run,
            the predictions in its folder are taken (of test images, or out of fold), and the images that it
            was trained on are not judged.
        options: How a folder or manifest is read.
        download: Whether a named dataset may be downloaded.
        batch_size: Images per forward pass.
        workers: Threads that read images for the model; None uses one per core.
        runtime: As for `skipnets.load`.
        device: As for `skipnets.load`.
        threads: As for `skipnets.load`.
        opened: Called with the images as soon as they are found, before the work; what it raises ends that.
        progress: Called with the name of the current step, the number of items done and their total.

    Raises:
        UserError: There is no such data or model, or the predictions are of other images.

    Examples:
        >>> found = audit("photos", "runs/cats")
        >>> found.write_page("audit.html")
        >>> found.write_manifest("clean.csv")
    """
    check_at_least_1(batch_size=batch_size, workers=workers)
    show = progress or _silent
    missing: list[str] = []
    if isinstance(data, ImageDataset):
        dataset, name = data, "images in memory" if data.root is None else str(data.root)
    else:
        dataset, missing = _open(data, options or DataOptions(), download=download)
        name = os.fspath(data)
    if opened is not None:
        opened(dataset)
    overview = survey(dataset, name)
    known = contents(dataset)
    copies = find_copies(dataset, known, lambda done, total: show("looking for copies", done, total))
    dataset = replace(dataset, contents=known, copies=copies)
    seen = measure_appearance(dataset, lambda done, total: show("looking at images", done, total))
    readable = [name for name in dataset.names if name not in overview.unreadable]
    headers = {}
    if dataset.images is None:
        images = [header for header in overview.headers if isinstance(header, Header)]
        headers = dict(zip(readable, images, strict=True))
    findings = [
        *(Finding("missing", None, name, "listed in the manifest", 0, "left out") for name in missing),
        *appearance_findings(dataset, seen),
        *size_findings(dataset, headers),
        *copy_findings(dataset),
        *group_findings(dataset),
        *class_findings(dataset),
        *(odd_numbers(dataset) if dataset.regression else ()),
    ]
    check: LabelCheck | NumberCheck | None = None
    if model is not None:
        if not isinstance(model, Classifier) and Path(model).suffix.lower() in TABLES:
            predictions = read_prediction_table(model, dataset)
        else:
            predictions = predict_unseen(
                model,
                dataset,
                batch_size=batch_size,
                workers=workers,
                runtime=runtime,
                device=device,
                threads=threads,
                progress=lambda done, total: show("predicting", done, total),
            )
        if dataset.regression:
            errors, check = check_numbers(dataset, predictions)
            findings += errors
        elif dataset.multi_label:
            errors, check = check_labels(dataset, predictions)
            findings += errors
        else:
            errors, check = _check_labels(dataset, predictions)
            findings += _agreed(dataset, errors, findings)
    return Audit(
        data=name,
        dataset=dataset,
        survey=overview,
        findings=sorted_findings(findings),
        label_check=check,
        options=options or DataOptions(),
    )


def _open(
    data: str | os.PathLike[str], options: DataOptions, *, download: bool
) -> tuple[ImageDataset, list[str]]:
    """The images, and the listed files that are not there."""
    missing: list[str] = []
    if options.dims != 2:
        raise UserError(f"dims={options.dims}: an audit looks at images, not at {INPUTS[options.dims]}")
    try:
        dataset = find_with_own_splits(data, download=download, options=options, strict=False)
    except MissingFilesError as error:
        missing = error.names
        options = replace(options, missing="skip")
        dataset = find_with_own_splits(data, download=download, options=options, strict=False)
    return dataset, missing


def _check_labels(dataset: ImageDataset, predictions: UnseenPredictions) -> tuple[list[Finding], LabelCheck]:
    """Images whose label the predictions contradict; classes that are not predicted are left out."""
    number = {name: index for index, name in enumerate(predictions.classes)}
    labels = np.array(
        [number.get(dataset.classes[label], -1) for label in dataset.labels[predictions.images]]
    )
    checked = labels >= 0
    images, labels = predictions.images[checked], labels[checked]
    probabilities = calibrated(labels, predictions.probabilities[checked])
    predicted = probabilities.argmax(1)
    several = len(np.unique(labels)) > 1
    check = LabelCheck(
        source=predictions.source,
        images=len(images),
        trained_on=predictions.trained_on,
        agreement=float((predicted == labels).mean()) if several else None,
        kappa=cohen_kappa(labels, predicted, len(predictions.classes)) if several else None,
    )
    if check.withheld:
        return [], check
    findings = []
    for error in find_label_errors(labels, probabilities):
        image, suggested = int(images[error.image]), predictions.classes[error.suggested]
        given = dataset.classes[dataset.labels[image]]
        detail = f"{error.of_suggested:.1%} {suggested}, {error.of_label:.1%} {given}"
        judged = dataset.splits[image] in ("val", "test")
        action: Action = "corrected" if error.of_suggested >= CERTAIN and not judged else "marked"
        findings.append(
            Finding(
                "label-error", image, dataset.names[image], detail, error.of_label, action, label=suggested
            )
        )
    return findings, check


def _agreed(
    dataset: ImageDataset, errors: Sequence[Finding], findings: Sequence[Finding]
) -> Iterator[Finding]:
    """Label errors, marked where their correction would give equal files different labels.

    What most of these are called decides before a model does, and a model corrects all of them or none.
    """

    def content(finding: Finding) -> Content | int:
        return -1 if finding.image is None else content_of(dataset, finding.image)

    by_majority = {
        content(each) for each in findings if each.kind == "contradiction" and each.action == "corrected"
    }
    files = Counter(content_of(dataset, image) for image in range(len(dataset)))
    alike = Counter((content(error), error.label) for error in errors if error.action == "corrected")
    for error in errors:
        key = content(error)
        certain = key not in by_majority and alike[key, error.label] == files[key]
        yield error if certain else error._replace(action="marked")


def _silent(*_: object) -> None:
    pass
