"""What may be wrong with class names: one class in two spellings, several labels in one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from skipnets.data.listing import Listing, counted
from skipnets.data.multi_label import MISSING
from skipnets.data.targets import as_number
from skipnets.errors import UserError, listed


def check_labels(listing: Listing, *, strict: bool = True) -> None:
    """Add to a listing's warnings what makes its classes doubtful.

    Args:
        listing: What was found.
        strict: Whether it is an error, and not a warning, if a class is spelled in one way where the model
            learns and in another where it is judged.

    Raises:
        UserError: It is, and `strict` is set.
    """
    if listing.regression:
        return
    splits_of: dict[str, set[str]] = {name: set() for name in listing.classes}
    if listing.multi_label:
        _check_missing(listing, splits_of)
        for names in spellings(splits_of):
            listing.warnings.append(f"labels {_quoted(names)} differ only in spelling; are they one label?")
        return
    for entry in listing.entries:
        splits_of.setdefault(entry.label, set()).add(entry.split)
    _check_missing(listing, splits_of)
    _check_spelling(listing, splits_of, strict=strict)
    _check_splits(listing, splits_of)
    _check_folders(listing)
    several = [name for name in splits_of if _is_several(name, splits_of)]
    if several:
        listing.warnings.append(
            f"class names that look like several labels: {_quoted(several)}; each is a class of its own; "
            "if an image may have several labels, --task multi-label"
        )
    if len(splits_of) > 20 and 2 * len(splits_of) > len(listing.entries):
        listing.warnings.append(
            f"{len(splits_of):,} classes for {counted(len(listing.entries), 'image')}: are these the labels?"
            + ("" if None in map(as_number, splits_of) else " --task regression takes them for numbers")
        )


def spellings(classes: Iterable[str]) -> Iterator[list[str]]:
    """The classes whose names differ in spelling only, wherever there are two or more, in their order."""
    alike: dict[str, list[str]] = {}
    for name in sorted(classes):
        alike.setdefault(_spelling_key(name), []).append(name)
    return (names for names in alike.values() if len(names) > 1)


def _check_missing(listing: Listing, classes: Iterable[str]) -> None:
    if missing := [name for name in classes if name.strip().lower() in MISSING]:
        listing.warnings.append(
            f"{'labels' if listing.multi_label else 'classes'} {_quoted(missing)}: as tables name a value "
            "that is missing; if it is, remove these images or give them a label"
        )


def _check_spelling(listing: Listing, splits_of: dict[str, set[str]], *, strict: bool) -> None:
    for names in spellings(splits_of):
        learned = [name for name in names if splits_of[name] & {"train", ""}]
        judged = [name for name in names if splits_of[name] and name not in learned]
        if learned and judged and strict:
            raise UserError(
                f"classes {_quoted(names)} differ only in spelling: {_quoted(judged)} is not in train and "
                f"cannot be learned; rename one of them"
            )
        listing.warnings.append(f"classes {_quoted(names)} differ only in spelling; are they one class?")


def _check_splits(listing: Listing, splits_of: dict[str, set[str]]) -> None:
    present = set().union(*splits_of.values())
    if "train" not in present:
        return
    unlearned = [name for name, splits in splits_of.items() if splits and not splits & {"train", ""}]
    if unlearned:
        listing.warnings.append(
            f"classes that are not in train, so every image of them counts as wrong: {_quoted(unlearned)}"
        )
    for split in sorted(present - {"train", ""}):
        absent = [name for name, splits in splits_of.items() if "train" in splits and split not in splits]
        if absent:
            listing.warnings.append(f"classes that are in train but not in {split}: {_quoted(absent)}")


def _check_folders(listing: Listing) -> None:
    """Warn where all class folders hold the same folders: then those may be the classes, as in train/cat."""
    below: dict[str, set[str]] = {}
    for entry in listing.entries:
        folders = entry.name.split("/")[:-1]
        if entry.split or not folders or folders[0] != entry.label:
            return
        below.setdefault(entry.label, set()).add(folders[1] if len(folders) > 1 else "")
    first, *others = below.values() or [set()]
    if others and len(first) > 1 and "" not in first and all(names == first for names in others):
        listing.warnings.append(
            f"the class folders {_quoted(below)} all hold the folders {_quoted(sorted(first))}: if those are "
            "the classes, and the upper folders splits, name them train, val and test"
        )


def _spelling_key(name: str) -> str:
    """Equal for names that differ in case, blanks, hyphens and accents only."""
    letters = re.sub("(?<=[a-z])[\u0300-\u036f]+", "", unicodedata.normalize("NFKD", name.casefold()))
    return re.sub("[-_\\s\u200b]", "", letters) or name


def _is_several(name: str, known: Iterable[str]) -> bool:
    parts = [part.strip() for part in re.split(r"[|;,+&]", name)]
    return len(parts) > 1 and ("|" in name or set(parts) <= set(known))


def _quoted(names: Iterable[str]) -> str:
    return listed(f'"{name}"' for name in names)


def check_group_names(listing: Listing) -> None:
    """Warn where file names mention patients, slides or the like and no group was asked for."""
    pattern = re.compile(r"(?i)(?<![a-z])(patient|subject|case|slide|study)[-_ ]?\d+")
    found = [match for entry in listing.entries if (match := pattern.search(entry.name))]
    groups = {match[0] for match in found}
    if len(found) > len(listing.entries) / 2 and 1 < len(groups) < len(found):
        word = found[0][1]
        listing.warnings.append(
            f"images of one {word.lower()} may end up in several splits, which makes results too good; "
            rf'to keep each together: --group-pattern "{word}[-_ ]?\d+"'
        )
