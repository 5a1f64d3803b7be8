"""A corrected manifest from an audit's findings: what is wrong for sure is put right, the rest is marked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skipnets.data.copies import Copy, clusters
from skipnets.data.manifest_files import relative_name
from skipnets.data.multi_label import labels_from_texts
from skipnets.data.targets import target_texts, targets_from_texts
from skipnets.errors import UserError, near_matches
from skipnets.evaluation.tables import write_table
from skipnets.report.findings import KINDS, Action, Finding, merged_spellings

if TYPE_CHECKING:
    from skipnets.data.dataset import ImageDataset
    from skipnets.report.auditing import Audit

__all__ = ["Corrected", "check_listed", "check_manifest", "corrected", "write_manifest"]

_ABOUT_IMAGES = tuple(kind for kind in KINDS if kind not in ("missing", "spelling", "small-class"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrected:
    """What becomes of one image.

    Attributes:
        label: Its label, corrected or not.
        kept: Whether it is in the manifest.
        reasons: What was found, and what was done about it.
    """

    label: str
    kept: bool
    reasons: tuple[str, ...]


def corrected(audit: Audit, drop: Collection[str] = ()) -> list[Corrected]:
    """What becomes of each image.

    Args:
        audit: The findings.
        drop: Further kinds of findings whose images are left out.
    """
    dataset = audit.dataset
    by_image: dict[int, list[Finding]] = {}
    for found in audit.findings.values():
        for finding in found:
            if finding.image is not None:
                by_image.setdefault(finding.image, []).append(finding)
    merged = merged_spellings(dataset)
    return [
        _correct(label, by_image.get(image, []), merged, drop, dataset.names)
        for image, label in enumerate(dataset.label_names)
    ]


def _correct(
    given: str, findings: list[Finding], merged: Mapping[str, str], drop: Collection[str], names: list[str]
) -> Corrected:
    label, kept = merged.get(given, given), True
    reasons = [f"spelling: {given}; corrected"] if given in merged else []
    for finding in findings:
        action: Action = "left out" if finding.kind in drop else finding.action
        if action == "corrected" and finding.label is not None:
            label = merged.get(finding.label, finding.label)
        kept = kept and action != "left out"
        copy = "" if finding.other is None else f" ({names[finding.other]})"
        reasons.append(f"{finding.kind}: {finding.detail}{copy}; {action}")
    return Corrected(label=label, kept=kept, reasons=tuple(reasons))


def check_manifest(path: str | os.PathLike[str], drop: Collection[str] = ()) -> None:
    """Check, before the work, what can be known before it.

    Raises:
        UserError: The file's name must be another one, or there is no such kind of finding.
    """
    if Path(path).suffix.lower() != ".csv":
        raise UserError(f"write={path}: must end in .csv")
    for kind in drop:
        if kind not in _ABOUT_IMAGES:
            raise UserError(
                f"drop={kind!r}: must be one of {', '.join(_ABOUT_IMAGES)}{near_matches(kind, _ABOUT_IMAGES)}"
            )


def check_listed(dataset: ImageDataset, path: str | os.PathLike[str], data: str) -> None:
    """Check that a manifest can list the images.

    Args:
        dataset: The images.
        path: Where the manifest is to be written.
        data: What was opened, for the error.

    Raises:
        UserError: The images do not lie in files of their own.
    """
    if dataset.members is not None:
        raise UserError(f"write={path}: {data} lies in shards, which a manifest cannot list")
    if dataset.root is None:
        raise UserError(f"write={path}: {data} does not lie in files, which a manifest could list")
    if dataset.pages is not None and len({dataset.file(image) for image in range(len(dataset))}) < len(
        dataset
    ):
        raise UserError(f"write={path}: a manifest lists files, not their pages; leave out --page all")


def write_manifest(audit: Audit, path: str | os.PathLike[str], *, drop: Collection[str] = ()) -> None:
    """Write the corrected manifest; see `Audit.write_manifest`."""
    path = Path(path)
    check_manifest(path, drop)
    dataset = audit.dataset
    check_listed(dataset, path, audit.data)
    changes = corrected(audit, drop)
    kept = np.flatnonzero([change.kept for change in changes])
    if not len(kept):
        raise UserError(f"write={path}: no image is left")
    remaining = dataset.select(kept)
    folder = path.absolute().parent
    rows = [changes[image] for image in kept]
    groups = _split_groups(remaining)
    columns = {
        "path": [relative_name(folder, str(dataset.file(image).absolute())) for image in kept.tolist()],
        **_label_columns(remaining, [row.label for row in rows], path),
        **({"split": remaining.splits.tolist()} if (remaining.splits != "").all() else {}),
        **({"split_group": groups} if len(set(groups)) < len(groups) else {}),
        "given_label": remaining.label_names,
        "reason": [" | ".join(row.reasons) for row in rows],
    }
    write_table(path, columns)


def _label_columns(dataset: ImageDataset, labels: list[str], path: Path) -> dict[str, list[str]]:
    """The column label; of several labels a column for each, with 1, 0 or nothing; of targets, too."""
    if dataset.task == "single-label":
        return {"label": labels}
    taken = {"path", "split", "split_group", "given_label", "reason"}
    if strange := sorted(taken & set(dataset.classes)):
        what = "target" if dataset.regression else "label"
        raise UserError(f"write={path}: the {what} {strange[0]} is called like a column of the manifest")
    if dataset.regression:
        cells = [target_texts(column[:, None]) for column in targets_from_texts(labels).T]
        return dict(zip(dataset.classes, cells, strict=True))
    marks = labels_from_texts(labels, dataset.classes)
    return {
        name: ["" if mark != mark else f"{mark:.0f}" for mark in column.tolist()]
        for name, column in zip(dataset.classes, marks.T, strict=True)
    }


def _split_groups(dataset: ImageDataset) -> list[str]:
    """(N,) the name of what each image stays together with: its copies, and its group if it has one."""
    pairs = list(dataset.copies)
    if dataset.groups is not None:
        _, first, members = np.unique(dataset.groups, return_index=True, return_inverse=True)
        pairs += [
            Copy(int(first[member]), image, exact=False, distance=0) for image, member in enumerate(members)
        ]
    names = dataset.names if dataset.groups is None else dataset.groups.tolist()
    return [names[image] for image in clusters(pairs, len(dataset))]
