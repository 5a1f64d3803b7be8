"""Write an audit as one self-contained HTML file, in the look of a run's report.

However many images there are, the page shows at most so many of each kind; counts are of all of them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skipnets.data.appearance import open_small
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.splits import SPLITS
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.report.findings import KINDS, Finding, actions
from skipnets.report.label_audit import co_occurrence
from skipnets.report.label_errors import LabelCheck
from skipnets.report.rendering import render
from skipnets.report.thumbnails import THUMBNAIL, data_uri, thumbnail_scale
from skipnets.version import __version__

if TYPE_CHECKING:
    from skipnets.report.auditing import Audit

__all__ = ["write_audit_page"]

LABEL_ERRORS = 60  # images with a probable label error that are shown
GROUPS, COPIES = 24, 5  # groups of copies that are shown of each kind, and images of each group
IMAGES = 24  # images that are shown of each other kind
LISTED = 200  # files that are listed by name
CLASSES = 100  # classes in the table of their sizes
TOGETHER = 20  # labels in the table of those that occur together

# What a manifest does not say about its files.
_OF_FILES = ("class_order", "page", "max_pixels", "targets")

_COPIES = ("leak", "exact-copy", "near-copy")
_NUMBERS = ("number-error", "odd-number")
_FILES = ("divided-group", "missing", "unreadable")
_LOOKS = (
    *("blank", "dark", "bright", "low-contrast", "low-information", "blurred"),
    *("odd-size", "odd-shape", "odd-color"),
)


def write_audit_page(
    audit: Audit,
    path: str | os.PathLike[str],
    progress: Callable[[str, int, int], object] | None = None,
) -> None:
    """Write the page; see `Audit.write_page`."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={path}: must end in .html")
    page = _page(audit, path, progress)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _page(audit: Audit, path: Path, progress: Callable[[str, int, int], object] | None) -> str:
    found = audit.findings
    groups = {kind: _groups(found[kind]) for kind in ("contradiction", *_COPIES)}
    shown = {
        *(finding.image for finding in found["label-error"][:LABEL_ERRORS]),
        *(finding.image for kind in (*_NUMBERS, *_LOOKS) for finding in found[kind][:IMAGES]),
        *(image for each in groups.values() for group in each[:GROUPS] for image in group[:COPIES]),
    }
    thumbnails = _thumbnails(audit, sorted(image for image in shown if image is not None), progress)

    labels = audit.dataset.label_names

    def image(position: int) -> dict[str, Any]:
        dataset = audit.dataset
        return {
            "image": thumbnails.get(position),
            "name": dataset.names[position],
            "label": labels[position],
            "split": str(dataset.splits[position]),
        }

    def kind(name: str, **more: Any) -> dict[str, Any]:
        return {
            "id": name,
            **KINDS[name]._asdict(),
            "count": len(found[name]),
            "action": actions(found[name]) if found[name] else "",
            **more,
        }

    def images(findings: Sequence[Finding]) -> list[dict[str, Any]]:
        return [
            {
                **image(finding.image),
                "detail": finding.detail,
                "suggested": finding.label,
                "action": finding.action,
            }
            for finding in findings
            if finding.image is not None
        ]

    return render(
        "audit.html.jinja",
        about=_about(audit, path),
        tiles=_tiles(audit),
        notes=[*audit.notes, *audit.survey.warnings],
        kinds=[kind(name) for name in found if found[name]],
        absent=[KINDS[name].title for name in audit.looked_for if not found[name]],
        label_errors=kind("label-error", images=images(found["label-error"][:LABEL_ERRORS])),
        check=audit.label_check,
        copies=[
            kind(
                name,
                groups=[
                    {"images": [image(each) for each in group[:COPIES]], "count": len(group)}
                    for group in each[:GROUPS]
                ],
                of=len(each),
            )
            for name, each in groups.items()
        ],
        spellings=kind("spelling", rows=found["spelling"][:LISTED]),
        files=[kind(name, rows=found[name][:LISTED]) for name in _FILES],
        looks=[kind(name, images=images(found[name][:IMAGES])) for name in (*_NUMBERS, *_LOOKS)],
        balance=None if audit.dataset.regression else _balance(audit),
        targets=audit.survey.targets,
        together=_together(audit),
        small=kind("small-class"),
        facts=audit.survey.facts(),
        columns=dict(audit.survey.columns),
    )


def _groups(findings: Iterable[Finding]) -> list[list[int]]:
    """The images of findings about copies, each after the image that it is a copy of."""
    groups: dict[int, list[int]] = {}
    placed: set[frozenset[int]] = set()
    for finding in findings:
        if finding.other is None or finding.image is None:
            continue
        # Two images that contradict one another are each a finding about the other.
        pair = frozenset((finding.image, finding.other))
        if pair not in placed:
            placed.add(pair)
            groups.setdefault(finding.other, [finding.other]).append(finding.image)
    return list(groups.values())


def _thumbnails(
    audit: Audit, images: Sequence[int], progress: Callable[[str, int, int], object] | None
) -> dict[int, str]:
    """Position → data URI, of the images that can be decoded."""

    def thumbnail(position: int) -> str | None:
        try:
            image = open_small(audit.dataset, position, THUMBNAIL)
        except ImageDecodeError:
            return None
        scale = thumbnail_scale(image)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        return data_uri(image.resize(size, Image.Resampling.NEAREST))

    found = {}
    with ThreadPoolExecutor(4) as pool:
        for done, (position, uri) in enumerate(zip(images, pool.map(thumbnail, images), strict=True), 1):
            if uri is not None:
                found[position] = uri
            if progress is not None:
                progress("thumbnails", done, len(images))
    return found


def _about(audit: Audit, path: Path) -> dict[str, Any]:
    total = len(audit.dataset)
    words = [audit.data, *audit.options.arguments()]
    if audit.label_check is not None and Path(audit.label_check.source).exists():
        words.insert(1, audit.label_check.source)
    return {
        "title": Path(audit.data).name or audit.data,
        "data": audit.data,
        "images": total,
        "classes": len(audit.dataset.classes),
        "noun": {"single-label": "class", "multi-label": "label", "regression": "target"}[audit.dataset.task],
        "affected": audit.affected,
        "table": path.with_suffix(".csv").name,
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "version": __version__,
        "audit": f"skipnets audit {shlex.join(words)} --write clean.csv",
        "train": shlex.join(["skipnets", "train", "clean.csv", *audit.options.arguments(_OF_FILES)]),
        "in_files": audit.dataset.root is not None and audit.dataset.members is None,
    }


def _tiles(audit: Audit) -> list[dict[str, Any]]:
    """The counts at the top of the page; None where it was not looked for."""
    count = {kind: len(found) for kind, found in audit.findings.items()}
    check = audit.label_check
    checked = "not looked for" if check is None else f"of {check.images:,} images that were checked"
    if isinstance(check, LabelCheck) and check.withheld:
        checked = (
            "not listed: every label has one value only"
            if check.agreement is None
            else f"not listed: the model agrees with {check.agreement:.0%} of the labels only"
        )
    numbers = audit.dataset.regression
    if numbers and check is not None and check.withheld:
        checked = "not listed: the model is no better than the median"
    errors = "number-error" if numbers else "label-error"
    return [
        {
            "title": "Leaks between splits",
            "value": count["leak"] + count["divided-group"] if audit.has_splits else None,
            "meaning": "make results too good" if audit.has_splits else "the data have no splits",
        },
        {
            "title": KINDS[errors].title,
            "value": None if check is None or check.withheld else count[errors],
            "meaning": checked,
        },
        {
            "title": f"Copies with different {'numbers' if numbers else 'labels'}",
            "value": count["contradiction"],
            "meaning": f"one of the {'numbers' if numbers else 'labels'} is wrong",
        },
        {
            "title": "Other copies",
            "value": count["exact-copy"] + count["near-copy"],
            "meaning": f"{count['exact-copy']:,} exact, {count['near-copy']:,} nearly equal",
        },
        {
            "title": "Unreadable files",
            "value": count["unreadable"] + count["missing"],
            "meaning": f"{count['missing']:,} missing" if count["missing"] else "damaged, or no images",
        },
        {
            "title": "Images that stand out",
            "value": len({each.image for kind in _LOOKS for each in audit.findings[kind]}),
            "meaning": "blank, dark, blurred, of odd size …",
        },
    ]


def _balance(audit: Audit) -> dict[str, Any]:
    """Number of images of each class and split; of many classes the largest and the smallest."""
    dataset = audit.dataset
    splits = [split for split in SPLITS if (dataset.splits == split).any()]
    counts = np.stack(
        [dataset.select(np.flatnonzero(dataset.splits == split)).counts() for split in splits or [""]],
        axis=1,
    )
    sizes = counts.sum(1)
    order = np.arange(len(sizes))
    if len(order) > CLASSES:
        by_size = np.argsort(-sizes, kind="stable")
        order = np.concatenate([by_size[: CLASSES // 2], by_size[-CLASSES // 2 :]])
    return {
        "rows": [
            {"name": dataset.classes[label], "counts": counts[label].tolist(), "all": int(sizes[label])}
            for label in order
        ],
        "splits": splits,
        "most": int(sizes.max()),
        "ratio": float(sizes.max() / sizes.min()) if sizes.min() else None,
        "count": len(sizes),
    }


def _together(audit: Audit) -> dict[str, Any] | None:
    """How many images have both of two labels, of the most frequent ones; None with one class an image."""
    dataset = audit.dataset
    if not dataset.multi_label:
        return None
    counts = co_occurrence(dataset)
    shown = np.sort(np.argsort(-counts.diagonal(), kind="stable")[:TOGETHER])
    names = [dataset.classes[index] for index in shown]
    apart = np.where(np.eye(len(names), dtype=bool), 0, counts[np.ix_(shown, shown)])
    return {
        "names": names,
        "rows": [
            {"name": name, "cells": counts[index, shown].tolist(), "own": place}
            for place, (name, index) in enumerate(zip(names, shown, strict=True))
        ],
        "most": max(int(apart.max()), 1),
        "of": len(dataset.classes),
    }
