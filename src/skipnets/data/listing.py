"""What was found where images were looked for: the images with their labels, and everything else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from skipnets.errors import listed


class Entry(NamedTuple):
    """An image that was found.

    Attributes:
        name: The path below the listing's root, with forward slashes; absolute where it lies elsewhere.
        label: The class; of several labels, the text of `skipnets.data.multi_label`; of numbers, that of
            `skipnets.data.targets`.
        split: "train", "val" or "test"; "" where the data does not say.
        group: What must not be divided among splits, such as a patient; "" where the data does not say.
    """

    name: str
    label: str
    split: str = ""
    group: str = ""


@dataclass
class Listing:
    """The images of a folder or a manifest, before anything is read or split.

    Attributes:
        layout: How the images are arranged, in words.
        root: What the names are relative to.
        entries: The images.
        classes: Class folders, of which some may be empty.
        passed_over: Reason → how many files (or folders) are not used for it.
        notes: How the data was read where it could be read otherwise.
        warnings: What may make results wrong.
        columns: A manifest's columns and what they were used for; "" for nothing.
        multi_label: Whether an image may have any number of labels.
        regression: Whether the labels are numbers; `classes` are then the names of the targets.
        groups_found: Whether the groups are those that the images themselves name, and nobody asked for them.
    """

    layout: str = "in memory"
    root: Path = Path()
    entries: list[Entry] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    multi_label: bool = False
    regression: bool = False
    groups_found: bool = False


def passed_over_line(passed_over: Counter[str], most: int = 8) -> str:
    """Such as "37 .heic (pip install …), 3 .txt, folder __MACOSX"."""

    def line(reason: str, count: int) -> str:
        if not reason.startswith("folder "):
            return f"{count:,} {reason}"
        return reason if count == 1 else f"{count:,} folders {reason.removeprefix('folder ')}"

    return listed((line(reason, count) for reason, count in passed_over.most_common()), most)


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "1,200 images"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def channel_word(channels: int) -> str:
    """Gray, color, or how many bands."""
    return {1: "gray", 3: "color"}.get(channels, f"{channels} bands")


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A sorting key by which "2" comes before "10" and "img2" before "img10"."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part.casefold())
        for part in re.split(r"(\d+)", name)
        if part
    ]
