"""What an audit finds in a dataset: images that stand out, copies, doubtful labels and classes.

An image stands out by how it looks if it passes an absolute limit and has less than half of what is usual in
its dataset, so that X-ray images are not all dark. cleanvision was measured for this and not taken
(benchmarks/appearance.py): of images that are as they should be it names too many where all are alike, of
blurred ones too few, and it decodes every image in full, by Pillow alone.

Shapes: N images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from skipnets.data.appearance import Appearance
from skipnets.data.contents import Content
from skipnets.data.copies import clusters
from skipnets.data.dataset import ImageDataset
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.labels import spellings
from skipnets.data.listing import counted
from skipnets.data.multi_label import label_text
from skipnets.data.raster import Header
from skipnets.data.splits import LATEST_FIRST
from skipnets.tables import number_text

__all__ = [
    "KINDS",
    "Action",
    "Finding",
    "Kind",
    "actions",
    "appearance_findings",
    "class_findings",
    "content_of",
    "copy_findings",
    "group_findings",
    "size_findings",
]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        title: Its heading.
        meaning: What is found, in a sentence.
    """

    title: str
    meaning: str


KINDS = {
    "label-error": Kind(
        "Probable label errors",
        "A prediction contradicts the label, with more confidence than is usual for its class (confident "
        "learning). Labels are corrected where its probability is at least 95%, but not in given validation "
        "and test splits: a test whose labels are what a model says flatters the model. Where images have "
        "several labels, each is judged alone, and only marked.",
    ),
    "number-error": Kind(
        "Unlikely numbers",
        "A number is far from what a model predicts that was not trained on the image: the difference lies "
        "more than three interquartile ranges beyond the quartiles of all differences. They are only marked.",
    ),
    "odd-number": Kind(
        "Numbers far from all others",
        "More than three interquartile ranges beyond the quartiles of the target: a slip of the decimal "
        "point, another unit, or what is rare.",
    ),
    "contradiction": Kind(
        "Copies with different labels",
        "One image under two labels. Of equal files the majority decides; where there is none, all are left "
        "out. Numbers differ if they do by more than a tenth of the target's standard deviation.",
    ),
    "spelling": Kind(
        "Classes in two spellings",
        "Class names that differ in case, blanks, hyphens or accents only. The most frequent spelling stays.",
    ),
    "leak": Kind(
        "Copies across splits",
        "Images that the model learns from, or is chosen by, and that a later split shows as well: results "
        "come out too good. The image in the later split stays.",
    ),
    "divided-group": Kind(
        "Groups across splits",
        "Images of a patient or another group that a later split shows as well: results come out too good. "
        "The images in the later split stay.",
    ),
    "exact-copy": Kind("Exact copies", "Files that are equal byte by byte."),
    "near-copy": Kind("Near copies", "One image saved again, resized, brightened, cropped or mirrored."),
    "missing": Kind("Missing files", "Files that the manifest lists and that are not there."),
    "unreadable": Kind("Unreadable files", "Files that cannot be decoded."),
    "blank": Kind("Blank images", "Images of one color."),
    "dark": Kind("Dark images", "Hardly any pixel is brighter than a third of white."),
    "bright": Kind("Overexposed images", "Nearly all pixels are white."),
    "low-contrast": Kind("Low contrast", "Nearly all pixels have about the same gray level."),
    "low-information": Kind(
        "Low information", "Few gray levels make up nearly all of the image, as in a placeholder."
    ),
    "blurred": Kind("Blurred images", "Edges are less than half as sharp as is usual here."),
    "odd-size": Kind("Odd sizes", "Far smaller or larger than the other images."),
    "odd-shape": Kind("Odd aspect ratios", "Far longer or narrower than the other images."),
    "odd-color": Kind("Gray among color", "Images without color among color images, or the reverse."),
    "small-class": Kind(
        "Small classes",
        "Fewer than 10 images, or than a tenth of the largest class. Collect more, or train with --imbalance "
        "weighted-loss.",
    ),
}
"""Name of each kind of finding, as in `Audit.findings`, the CSV file and `--drop`; most serious first."""

Action = Literal["corrected", "left out", "kept together", "marked", "kept"]
"""What the corrected manifest does about a finding; "kept" of classes, "marked" of images."""


class Finding(NamedTuple):
    """One image, or one class, that is worth a look.

    Attributes:
        kind: One of `KINDS`.
        image: The image's position in the dataset; None for a class or a file that is not there.
        name: The image's name, the class or the missing file.
        detail: What was found, such as "90×1200 pixels", height × width.
        score: Findings of a kind are in the order of their scores, the most serious first.
        action: What the corrected manifest does about it.
        other: The position of the copy, if it is about one.
        label: The label that the image or class should have, if it should have another one.
    """

    kind: str
    image: int | None
    name: str
    detail: str
    score: float
    action: Action = "marked"
    other: int | None = None
    label: str | None = None


# Kind → which number, its limit, and how it is written. Numbers fall toward what is wrong.
_LIMITS: dict[str, tuple[Callable[[Appearance], float], float, str]] = {
    "dark": (lambda seen: seen.brightest, 0.32, "99% of the pixels are below {:.0%} of white"),
    "bright": (lambda seen: 1 - seen.darkest, 0.05, "95% of the pixels are within {:.0%} of white"),
    "low-contrast": (lambda seen: seen.contrast, 0.15, "98% of the pixels are within {:.0%} of one another"),
    "low-information": (lambda seen: seen.information, 3.0, "{:.1f} bits a pixel"),
    "blurred": (lambda seen: seen.sharpness, 1.25, "sharpness {:.2f}"),
}
_ONE_COLOR = 3 / 255
_NARROW = 0.35  # shorter side over longer side
_SPREAD = 3  # interquartile ranges of size beyond the quartiles
_FACTOR = 1.5
_FEW = 10
_DIFFERENT_NUMBERS = 0.1  # standard deviations of the target
_SHARE = 0.1


def appearance_findings(
    dataset: ImageDataset, seen: Sequence[Appearance | ImageDecodeError]
) -> Iterator[Finding]:
    """Images that cannot be decoded, show nothing, or look unlike the others.

    Args:
        dataset: N images.
        seen: What `measure_appearance` says of each.
    """
    shown: dict[int, Appearance] = {}
    for image, each in enumerate(seen):
        name = dataset.names[image]
        if isinstance(each, ImageDecodeError):
            yield Finding("unreadable", image, name, _reason(dataset, image, each), 0, "left out")
        elif each.contrast <= _ONE_COLOR:
            yield Finding("blank", image, name, f"all of about one gray level, {255 * each.brightest:.0f}", 0)
        else:
            shown[image] = each
    if not shown:
        return
    named: set[int] = set()  # what is dark has little contrast, too
    for kind, (number, limit, detail) in _LIMITS.items():
        values = {image: number(each) for image, each in shown.items()}
        known = [value for value in values.values() if not np.isnan(value)]
        bound = min(limit, float(np.median(known)) / 2) if known else -np.inf
        for image, value in values.items():
            if value < bound and image not in named:
                named.add(image)
                yield Finding(kind, image, dataset.names[image], detail.format(value), value)
    visible = {image: each for image, each in shown.items() if image not in named}
    colorless = [image for image, each in visible.items() if each.colorless]
    colored = [image for image, each in visible.items() if not each.colorless]
    rare, what = (colorless, "gray") if len(colorless) <= len(colored) else (colored, "color")
    for image in rare:
        yield Finding("odd-color", image, dataset.names[image], what, 0)


def size_findings(dataset: ImageDataset, headers: Mapping[str, Header]) -> Iterator[Finding]:
    """Images whose size or shape is unlike that of the others.

    Args:
        dataset: N images.
        headers: Name → header, of those that can be read.
    """
    positions = [image for image, name in enumerate(dataset.names) if name in headers]
    if not positions:
        return
    sizes = np.array([(header.width, header.height) for header in map(headers.get, dataset.names) if header])
    side = np.sqrt(sizes.prod(1))
    low, middle, high = np.percentile(side, (25, 50, 75))
    reach = (high / low) ** _SPREAD * _FACTOR
    shape = sizes.min(1) / sizes.max(1)
    narrow = min(_NARROW, float(np.median(shape)) / 2)
    for image, (width, height), root, ratio in zip(positions, sizes.tolist(), side, shape, strict=True):
        name = dataset.names[image]
        if root < low / reach or root > high * reach:
            away = -abs(float(np.log(root / middle)))
            yield Finding("odd-size", image, name, f"{height}×{width} pixels", away)
        if ratio < narrow:
            yield Finding("odd-shape", image, name, f"{height}×{width} pixels", float(ratio))


def class_findings(dataset: ImageDataset) -> Iterator[Finding]:
    """Classes in two spellings, and classes that are far smaller than the largest; labels likewise."""
    if dataset.regression:
        return
    counts = dataset.counts().tolist()
    count_of = dict(zip(dataset.classes, counts, strict=True))
    spelled = _spelled_otherwise(dataset)
    for name, target in spelled.items():
        detail = f'{counted(count_of[name], "image")}; "{target}" has {count_of[target]:,}'
        action: Action = "kept" if dataset.multi_label else "corrected"
        yield Finding("spelling", None, name, detail, -count_of[name], action, label=target)
    largest = max(counts, default=0)
    what = "most frequent label" if dataset.multi_label else "largest class"
    for name, count in count_of.items():
        if count < max(_FEW, _SHARE * largest) and name not in spelled:
            detail = f"{counted(count, 'image')}; the {what} has {largest:,}"
            yield Finding("small-class", None, name, detail, count, "kept")


def merged_spellings(dataset: ImageDataset) -> dict[str, str]:
    """Class → the spelling by which it is replaced; of several labels an image, none is."""
    return {} if dataset.task != "single-label" else _spelled_otherwise(dataset)


def _spelled_otherwise(dataset: ImageDataset) -> dict[str, str]:
    """Class → the most frequent spelling of it, for classes that have another one."""
    count_of = dict(zip(dataset.classes, dataset.counts().tolist(), strict=True))
    merged: dict[str, str] = {}
    for names in spellings(dataset.classes):
        target = max(names, key=lambda name: count_of[name])
        merged |= {name: target for name in names if name != target}
    return merged


def group_findings(dataset: ImageDataset) -> Iterator[Finding]:
    """Images of groups that a later split has images of as well.

    Args:
        dataset: Its splits are "" where the data do not give any.
    """
    if dataset.groups is None:
        return
    groups, splits = dataset.groups.tolist(), dataset.splits.tolist()
    last: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        last[group] = min(last.get(group, split), split, key=lambda each: LATEST_FIRST[each])
    for image, (group, split) in enumerate(zip(groups, splits, strict=True)):
        if split != last[group]:
            detail = f"{group}; {split} and {last[group]}"
            yield Finding("divided-group", image, dataset.names[image], detail, 0, "left out")


def copy_findings(dataset: ImageDataset) -> Iterator[Finding]:
    """Copies: across splits, with different labels, and the rest.

    Each image is compared with one that stands for all its copies: the first in the latest split.

    Args:
        dataset: With `copies` and `contents`; its splits are "" where the data do not give any.
    """
    merged = merged_spellings(dataset)
    differ_by = _DIFFERENT_NUMBERS * np.nanstd(dataset.labels, axis=0) if dataset.regression else np.zeros(0)
    distance_of = {(copy.first, copy.second): copy.distance for copy in dataset.copies}
    for first, *others in copy_groups(dataset):
        group = [first, *others]
        if dataset.regression:
            contradictions = list(_number_contradictions(dataset, group, differ_by))
        elif dataset.multi_label:
            contradictions = list(_label_contradictions(dataset, group))
        else:
            contradictions = list(_contradictions(dataset, group, merged))
        yield from contradictions
        left_out = {finding.image for finding in contradictions if finding.action == "left out"}
        for image in others:
            exact = content_of(dataset, image) == content_of(dataset, first)
            distance = distance_of.get((min(first, image), max(first, image)), 0.0 if exact else 1.0)
            detail = "equal byte by byte" if exact else "nearly equal"
            if distance == 1:
                detail += " by way of other copies"
            split, later = str(dataset.splits[image]), str(dataset.splits[first])
            kind = "leak" if split != later else "exact-copy" if exact else "near-copy"
            if kind == "leak":
                detail += f"; {split} and {later}"
            action: Action = "left out" if kind == "leak" or image in left_out else "kept together"
            yield Finding(kind, image, dataset.names[image], detail, distance, action, first)


def _contradictions(
    dataset: ImageDataset, group: Sequence[int], merged: Mapping[str, str]
) -> Iterator[Finding]:
    """The images of a group that have another label than their copies, spelling aside."""
    label_of = {image: dataset.classes[dataset.labels[image]] for image in group}
    label_of = {image: merged.get(label, label) for image, label in label_of.items()}
    equal: dict[Content | int, list[int]] = {}
    for image in group:
        equal.setdefault(content_of(dataset, image), []).append(image)
    for images in equal.values():
        votes = Counter(label_of[image] for image in images).most_common()
        if len(votes) == 1:
            if label_of[images[0]] != label_of[group[0]]:
                detail = f"nearly equal; labels {label_of[images[0]]} and {label_of[group[0]]}"
                for image in images:
                    yield Finding("contradiction", image, dataset.names[image], detail, 1, other=group[0])
            continue
        majority = votes[0][0] if votes[0][1] > votes[1][1] else None
        detail = f"equal byte by byte; labels {' and '.join(label for label, _ in votes)}"
        for image in images:
            if label_of[image] != majority:
                other = next(one for one in images if label_of[one] != label_of[image])
                action: Action = "corrected" if majority is not None else "left out"
                yield Finding(
                    "contradiction", image, dataset.names[image], detail, 0, action, other, majority
                )


def _label_contradictions(dataset: ImageDataset, group: Sequence[int]) -> Iterator[Finding]:
    """The images of a group with a label that a copy of theirs is known not to have, or the reverse."""
    equal: dict[Content | int, list[int]] = {}
    for image in group:
        equal.setdefault(content_of(dataset, image), []).append(image)
    for images in equal.values():
        present, absent = ((dataset.labels[images] == value).sum(0) for value in (1, 0))
        differing = (present > 0) & (absent > 0)
        if not differing.any():
            yield from _unlike_first(dataset, images, group[0])
            continue
        names = " and ".join(np.array(dataset.classes)[differing].tolist())
        decided = not (differing & (present == absent)).any()
        majority = (present > absent).astype(np.float32)
        for image in images:
            outvoted = np.isfinite(dataset.labels[image]) & differing
            if decided:
                outvoted &= dataset.labels[image] != majority
            if not outvoted.any():
                continue
            other = next(
                one
                for one in images
                if (differing & (np.abs(dataset.labels[one] - dataset.labels[image]) == 1)).any()
            )
            right = np.where(differing, majority, dataset.labels[image])
            yield Finding(
                "contradiction",
                image,
                dataset.names[image],
                f"equal byte by byte; {names} present and absent",
                0,
                "corrected" if decided else "left out",
                other,
                label_text(right, dataset.classes) if decided else None,
            )


def _number_contradictions(
    dataset: ImageDataset, group: Sequence[int], differ_by: NDArray[np.float64]
) -> Iterator[Finding]:
    """The images of a group whose numbers differ from those of its first; equal files are left out.

    Args:
        dataset: With numbers to predict.
        group: Images that show the same.
        differ_by: (T,) from which distance on numbers of a target are different.
    """
    first, *others = group
    contradicted = None
    for image in others:
        detail = _other_numbers(dataset, image, first, differ_by)
        if not detail:
            continue
        if content_of(dataset, image) == content_of(dataset, first):
            contradicted = image if contradicted is None else contradicted
            detail = f"equal byte by byte; {detail}"
            yield Finding("contradiction", image, dataset.names[image], detail, 0, "left out", other=first)
        else:
            yield Finding(
                "contradiction", image, dataset.names[image], f"nearly equal; {detail}", 1, other=first
            )
    if contradicted is not None:
        detail = f"equal byte by byte; {_other_numbers(dataset, first, contradicted, differ_by)}"
        yield Finding("contradiction", first, dataset.names[first], detail, 0, "left out", other=contradicted)


def _other_numbers(dataset: ImageDataset, image: int, other: int, differ_by: NDArray[np.float64]) -> str:
    """In which numbers two images differ; unknown ones are not different."""
    numbers = dataset.labels[[image, other]]
    differing = np.flatnonzero(np.abs(numbers[0] - numbers[1]) > differ_by)
    return ", ".join(
        f"{dataset.classes[index]} {' and '.join(map(number_text, numbers[:, index].tolist()))}"
        for index in differing.tolist()
    )


def _unlike_first(dataset: ImageDataset, images: Sequence[int], first: int) -> Iterator[Finding]:
    """Of equal images that nearly equal another, those with a label that it is known not to have."""
    differing = np.abs(dataset.labels[images] - dataset.labels[first]) == 1
    for image, labels in zip(images, differing, strict=True):
        if labels.any():
            names = " and ".join(np.array(dataset.classes)[labels].tolist())
            detail = f"nearly equal; {names} present and absent"
            yield Finding("contradiction", image, dataset.names[image], detail, 1, other=first)


def copy_groups(dataset: ImageDataset) -> list[list[int]]:
    """Images that show the same, each group with the first image of its latest split at the front."""
    first = clusters(dataset.copies, len(dataset))
    groups: dict[int, list[int]] = {}
    for image in sorted({image for copy in dataset.copies for image in copy[:2]}):
        groups.setdefault(int(first[image]), []).append(image)
    return [
        sorted(group, key=lambda image: (LATEST_FIRST[str(dataset.splits[image])], image))
        for group in groups.values()
    ]


def content_of(dataset: ImageDataset, image: int) -> Content | int:
    """What equal files have in common; the position where that is not known."""
    content = None if dataset.contents is None else dataset.contents[image]
    return content if content is not None and content.hash else image


def _reason(dataset: ImageDataset, image: int, error: ImageDecodeError) -> str:
    return str(error).removeprefix(f"{dataset.source(image)}: ") if dataset.images is None else str(error)


def actions(findings: Iterable[Finding]) -> str:
    """What the corrected manifest does about findings, such as "12 corrected, 3 marked"."""
    counts = Counter(finding.action for finding in findings)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{counts[action]:,} {action}" for action in get_args(Action) if counts[action])


def sorted_findings(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Kind → findings, most serious first; every kind is there."""
    found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        found[finding.kind].append(finding)
    for each in found.values():
        each.sort(key=lambda finding: (finding.score, finding.name))
    return found
