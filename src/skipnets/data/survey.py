"""What a dataset holds, as a table: layout, splits and classes with counts, sizes, depth, warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from skipnets.axes import INPUTS, worded
from skipnets.data.dataset import BANDS_OF_IMAGES, ImageDataset, mixed_channels
from skipnets.data.decoding import ImageDecodeError
from skipnets.data.listing import channel_word, counted, passed_over_line
from skipnets.data.raster import NO_SUCH_PAGE, Header
from skipnets.data.splits import SPLITS
from skipnets.data.volume_files import VolumeHeader
from skipnets.data.window import MeasuredWindow, measure_window
from skipnets.errors import UserError, listed
from skipnets.tables import Display, make_table, properties_table

if TYPE_CHECKING:
    from rich.table import Table

# Of more classes than this, the first and the last are shown.
_CLASSES_SHOWN = 20
_FIRST, _LAST = 12, 4
# Of how many images with more than 8 bits the values are looked at.
_MEASURED = 64
_RIGHT: Literal["right"] = "right"
# Spatial axes → what their sides are called, and what lies at each place.
_SIDE_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_PLACES = {1: "values", 2: "pixels", 3: "voxels"}
_NO_SPLIT = "no split"


@dataclass(frozen=True, kw_only=True)
class Survey(Display):
    """What a dataset holds; it prints as a table.

    Attributes:
        data: What was opened.
        layout: How the images are arranged.
        classes: Their names, in the order of their labels.
        counts: Split → images of each class; "no split" where the data does not give it.
        sizes: Split → images.
        multi_label: Whether an image has any number of classes, which are then called labels.
        columns: A manifest's columns and what each is used for; "" for nothing.
        groups: How many groups there are; None where groups are not known.
        headers: What the headers of the images say, without those that cannot be read.
        unreadable: Name → reason.
        looked_at: How many headers were read.
        passed_over: Reason → count of files that are not used.
        notes: How the data was read where it could be read otherwise.
        warnings: What may make results wrong.
        values: Of some of the images, where these have more than 8 bits or are of bands; otherwise None.
        targets: Of numbers to predict, each target's name, lowest, mean and highest value, and standard
            deviation.
        dims: Spatial axes: 1 of signals, 2 of images, 3 of volumes.
    """

    data: str
    layout: str
    classes: tuple[str, ...]
    counts: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int]
    columns: Mapping[str, str]
    groups: int | None
    headers: Sequence[Header | VolumeHeader] = field(repr=False)
    unreadable: Mapping[str, str]
    looked_at: int
    passed_over: Counter[str]
    notes: Sequence[str]
    warnings: Sequence[str]
    values: MeasuredWindow | None = None
    multi_label: bool = False
    targets: Sequence[Mapping[str, Any]] = ()
    dims: int = 2

    @property
    def total(self) -> int:
        """How many images there are."""
        return sum(self.sizes.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        sides = [header.sides for header in self.headers]
        ranges = [[min(axis), max(axis)] for axis in zip(*sides, strict=True)]
        return {
            "data": self.data,
            "layout": self.layout,
            "images": self.total,
            "splits": dict(self.sizes),
            "task": "regression" if self.targets else "multi-label" if self.multi_label else "single-label",
            **({"targets": list(self.targets)} if self.targets else {"classes": self._class_counts()}),
            "columns": dict(self.columns),
            "groups": self.groups,
            "headers_read": self.looked_at,
            **{
                name: ranges[axis] if ranges else None
                for axis, name in reversed([*enumerate(_SIDE_NAMES[self.dims])])
            },
            "channels": _tally(header.channels for header in self.headers),
            "bits": _tally(header.bits for header in self.headers),
            "values": None if self.values is None else self.values.to_dict(),
            "formats": _tally(header.format for header in self.headers),
            "with_several_pages": sum(header.several for header in self.headers),
            "unreadable": dict(self.unreadable),
            "passed_over": dict(self.passed_over.most_common()),
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def facts(self) -> dict[str, str]:
        """What there is but for counts of classes, in words; without what there is nothing to say about."""
        splits = ", ".join(f"{split} {count:,}" for split, count in self.sizes.items())
        rows = {
            "data": self.data,
            "layout": self.layout,
            "columns": ", ".join(f"{name} ({role})" for name, role in self.columns.items() if role),
            INPUTS[self.dims]: f"{self.total:,}" + (f" ({splits})" if [*self.counts] != [_NO_SPLIT] else ""),
            self._noun: f"{len(self.classes):,}{self._labels_an_image()}",
            "groups": "" if self.groups is None else f"{self.groups:,}",
            "size": self._sizes(),
            "channels": _shares(
                channel_word(header.channels) if self.dims == 2 else header.channels
                for header in self.headers
            ),
            "bits": _shares(header.bits for header in self.headers),
            "format": _shares(header.format for header in self.headers),
            "values": "" if self.values is None else str(self.values),
            "unreadable": listed((f"{name} ({reason})" for name, reason in self.unreadable.items()), 3),
            "passed over": passed_over_line(self.passed_over),
        }
        return {name: text for name, text in rows.items() if text}

    def tables(self) -> list[Table]:
        """What `print` and a notebook show."""
        properties = properties_table([*self.facts().items(), *(("note", note) for note in self.notes)])
        warnings = properties_table(("warning", warning) for warning in self.warnings)
        table = self._target_table() if self.targets else self._class_table()
        return [properties, table, *([warnings] if self.warnings else [])]

    @property
    def _noun(self) -> str:
        return "targets" if self.targets else "labels" if self.multi_label else "classes"

    def _class_counts(self) -> list[dict[str, Any]]:
        return [
            {"index": index, "name": name, **{split: counts[index] for split, counts in self.counts.items()}}
            for index, name in enumerate(self.classes)
        ]

    def _target_table(self) -> Table:
        columns = dict.fromkeys(("lowest", "mean", "highest", "standard deviation"), _RIGHT)
        some_unknown = any(each["unknown"] for each in self.targets)
        rows = (
            [
                each["name"],
                *([f"{each['unknown']:,}"] if some_unknown else []),
                *(f"{each[name]:.6g}" for name in columns),
            ]
            for each in self.targets
        )
        return make_table(
            {"target": "left", **({"unknown": _RIGHT} if some_unknown else {}), **columns}, rows
        )

    def _labels_an_image(self) -> str:
        if not self.multi_label or not self.total:
            return ""
        per = worded("an image", self.dims)
        return f", {sum(map(sum, self.counts.values())) / self.total:.2f} {per} on average"

    def _sizes(self) -> str:
        if not self.headers:
            return ""
        sizes = sorted({(math.prod(header.sides), header.sides[::-1]) for header in self.headers})
        first, last = (sides[::-1] for _, sides in (sizes[0], sizes[-1]))
        of = f" (of {self.looked_at:,} {INPUTS[self.dims]})" if self.looked_at < self.total else ""
        most = "" if len(sizes) == 1 else f" to {'×'.join(map(str, last))}"
        uneven = len(set(first)) > 1 or len(set(last)) > 1
        order = f" ({' × '.join(_SIDE_NAMES[self.dims])})" if uneven else ""
        return f"{'×'.join(map(str, first))}{most} {_PLACES[self.dims]}{order}{of}"

    def _class_table(self) -> Table:
        hidden = range(_FIRST, len(self.classes) - _LAST if len(self.classes) > _CLASSES_SHOWN else 0)
        rows = []
        for index, name in enumerate(self.classes):
            if index not in hidden:
                counts = [split_counts[index] for split_counts in self.counts.values()]
                rows.append([str(index), name, *(f"{count:,}" for count in (*counts, sum(counts)))])
            elif index == hidden[0]:
                rows.append(["…", f"({len(hidden):,} more)"])
        splits = dict.fromkeys((*self.counts, "all"), _RIGHT)
        title = "label" if self.multi_label else "class"
        return make_table({"index": _RIGHT, title: "left", **splits}, rows)


def survey(dataset: ImageDataset, name: str, *, most: int | None = None) -> Survey:
    """Look at the headers of a dataset's images and count what there is.

    Args:
        dataset: From `open_dataset`.
        name: What it was opened from.
        most: Headers to read at most, evenly spread; None for all.

    Raises:
        UserError: No image has the page that was asked for.
    """
    listing = dataset.listing
    counts = {
        split or _NO_SPLIT: dataset.select(np.flatnonzero(dataset.splits == split)).counts().tolist()
        for split in (*SPLITS, "")
        if (dataset.splits == split).any()
    }
    headers, unreadable, looked_at = _headers(dataset, most)
    values = _values(dataset)
    depth_warnings = () if values is None else values.warnings
    return Survey(
        data=name,
        layout=listing.layout,
        classes=dataset.classes,
        counts=counts,
        sizes={split: int((dataset.splits == split.replace(_NO_SPLIT, "")).sum()) for split in counts},
        multi_label=dataset.multi_label,
        targets=_targets(dataset),
        columns=listing.columns,
        groups=None if dataset.groups is None else len(np.unique(dataset.groups)),
        headers=headers,
        unreadable=unreadable,
        looked_at=looked_at,
        passed_over=listing.passed_over,
        notes=[*listing.notes, *_header_notes(dataset, headers)],
        warnings=[
            *listing.warnings,
            *_header_warnings(headers, unreadable, looked_at, dataset.dims),
            *depth_warnings,
        ],
        values=values,
        dims=dataset.dims,
    )


def _targets(dataset: ImageDataset) -> list[dict[str, Any]]:
    """What the numbers are that are to be predicted; empty where there are none."""
    if not dataset.regression:
        return []
    known = (
        (name, column[np.isfinite(column)])
        for name, column in zip(dataset.classes, dataset.labels.T, strict=True)
    )
    return [
        {
            "name": name,
            "unknown": len(dataset) - len(column),
            "lowest": float(column.min()),
            "mean": float(column.mean()),
            "highest": float(column.max()),
            "standard deviation": float(column.std()),
        }
        for name, column in known
    ]


def _values(dataset: ImageDataset) -> MeasuredWindow | None:
    """The values of some images, where they are to be windowed."""
    if dataset.dims != 2:
        return None
    try:
        channels = dataset.channels
        if dataset.bits <= 8 and channels in (1, 3):
            return None
        return measure_window(
            dataset, range(0, len(dataset), -(-len(dataset) // _MEASURED)), channels=channels
        )
    except UserError:  # images of different channels, or none that can be read, are reported elsewhere
        return None


def _headers(
    dataset: ImageDataset, most: int | None
) -> tuple[list[Header | VolumeHeader], dict[str, str], int]:
    if dataset.images is not None:
        return [dataset.header(0)] if len(dataset) else [], {}, len(dataset)
    step = 1 if most is None else max(-(-len(dataset) // most), 1)
    positions = range(0, len(dataset), step)

    def read(position: int) -> Header | VolumeHeader | ImageDecodeError:
        try:
            return dataset.header(position)
        except ImageDecodeError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, positions))
    headers = [header for header in found if not isinstance(header, ImageDecodeError)]
    unreadable = {
        dataset.names[position]: str(error).removeprefix(f"{dataset.source(position)}: ")
        for position, error in zip(positions, found, strict=True)
        if isinstance(error, ImageDecodeError)
    }
    if dataset.pages is not None and {*unreadable.values()} == {NO_SUCH_PAGE} and not headers:
        raise UserError(f"page={dataset.pages[0] + 1}: none of the {len(positions):,} images has such a page")
    return headers, unreadable, len(positions)


def _header_notes(dataset: ImageDataset, headers: Sequence[Header | VolumeHeader]) -> Iterator[str]:
    several = sum(header.several for header in headers)
    if several and dataset.pages is None:
        whole = "; --dims 3 takes whole volumes" if any(each.format == "NIfTI" for each in headers) else ""
        yield (
            f"{counted(several, 'file')} with several pages or frames: the first is taken, of a volume the "
            f"middle one (--page all makes an image of each, --page 2 takes the second{whole})"
        )

    arrays = (each for each in headers if isinstance(each, Header) and each.format in ("NPY", "NPZ"))
    bands = max((header.channels for header in arrays), default=0)
    if bands > BANDS_OF_IMAGES:
        yield f"arrays are read as images of up to {bands} channels; --dims 3 takes them as volumes"


def _header_warnings(
    headers: Sequence[Header | VolumeHeader], unreadable: Mapping[str, str], looked_at: int, dims: int
) -> Iterator[str]:
    what = INPUTS[dims]
    if unreadable:
        first = next(iter(unreadable.items()))
        yield f"{len(unreadable):,} of {looked_at:,} {what} cannot be read, such as {first[0]}: {first[1]}"
    channels = {header.channels for header in headers}
    if len(channels) > 1 and (dims != 2 or channels - {1, 3}):
        yield mixed_channels(channels, dims)
    bits = {header.bits for header in headers}
    if len(bits) > 1:
        yield (
            f"{what} of {' and '.join(map(str, sorted(bits)))} bits are mixed: where classes differ in this, "
            f"the model may learn it instead of what the {what} show"
        )


def _tally(values: Iterator[Any]) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}


def _shares(values: Iterator[Any]) -> str:
    """One value alone, or several with their counts."""
    tally = Counter(values).most_common()
    if len(tally) == 1:
        return str(tally[0][0])
    return ", ".join(f"{value} {count:,}" for value, count in tally)
