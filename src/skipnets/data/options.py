"""How a folder or a manifest is to be read, where that does not show by itself."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from skipnets.axes import INPUTS
from skipnets.data.multi_label import Uncertain
from skipnets.errors import UserError, near_matches

Layout = Literal["auto", "classes", "splits"]
ClassOrder = Literal["alphabetical", "natural"]
Missing = Literal["error", "skip"]
Task = Literal["auto", "single-label", "multi-label", "regression"]
Dims = Literal[1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a folder or a manifest is read.

    Attributes:
        dims: 2 for images, 3 for volumes, 1 for signals: spatial axes of what is in each file.
        layout: Of a folder: "classes" takes every folder for a class, "splits" requires split folders.
        exclude: Patterns of folders and files to leave out, such as "masks" or "*_mask.png".
        class_order: "alphabetical" (1, 10, 2) or "natural" (1, 2, 10).
        root: What a manifest's relative paths start from. Default: the manifest's folder.
        task: "single-label" for one class an image, "multi-label" for any number of labels, "regression" for
            numbers. "auto" takes several labels where a manifest has a column for each label, or a column
            "labels" with names such as "cat|dog", and numbers where targets are given.
        label_columns: A manifest's columns of single labels, with 1, 0, -1 (uncertain) or nothing (unknown).
            Default: all columns of such values, where there is no column of classes.
        uncertain: How -1 in them is treated: "ignore" (as unknown), "positive" or "negative".
        targets: A manifest's columns of numbers to predict. Default, with task="regression": the one column
            that holds numbers in every row.
        path_column: The manifest's column of image files, by name, or by number where it has no header.
        label_column: Its column of classes.
        split_column: Its column of splits.
        group_column: Its column of what must not be divided among splits, such as patients. Default:
            split_group, if there is such a column.
        group_pattern: A regular expression that finds the group in an image's path: its first parenthesis
            that matches, or all of it.
        page: Which page of a TIFF file, frame of an animation or slice of a volume is the image, from 1;
            "all" makes an image of each. Default: the first; of a volume, the middle one.
        max_pixels: The most pixels that an image may have; larger ones are refused before they take memory.
            Default: 89,478,485.
        missing: "skip" goes on without files that a manifest or splits.csv lists and that are not there.

    Raises:
        UserError: A value is impossible.
    """

    dims: Dims = 2
    layout: Layout = "auto"
    exclude: tuple[str, ...] = ()
    class_order: ClassOrder = "alphabetical"
    task: Task = "auto"
    label_columns: tuple[str, ...] = ()
    uncertain: Uncertain = "ignore"
    targets: tuple[str, ...] = ()
    root: Path | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    page: int | Literal["all"] | None = None
    max_pixels: int | None = None
    missing: Missing = "error"

    @property
    def wants_numbers(self) -> bool:
        """Whether the labels are numbers to predict."""
        return self.task == "regression" or bool(self.targets)

    def of_model(self, task: Task, classes: Sequence[str], *, dims: int = 2) -> Self:
        """How data are read for a model: as its task is, where these options do not give another.

        Args:
            task: The model's.
            classes: Its classes, or the targets that it predicts.
            dims: Spatial axes of its input.
        """
        is_told = self.wants_numbers or (bool(self.label_columns) and task != "multi-label")
        if self.dims not in (2, dims):
            raise UserError(f"dims={self.dims}: must be {dims}, as the model takes {INPUTS[dims]}")
        options = replace(self, dims=cast(Dims, dims))
        options = replace(options, task=task) if self.task == "auto" and not is_told else options
        if options.task == "regression" == task and not options.targets:
            options = replace(options, targets=tuple(classes))
        return options

    def to_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as JSON can hold them."""
        return {
            option.name: str(value) if isinstance(value, Path) else value
            for option in fields(self)
            if (value := getattr(self, option.name)) != option.default
        }

    def arguments(self, names: Container[str] | None = None) -> list[str]:
        """The options that differ from their defaults, as they are typed: ["--page", "2"].

        Args:
            names: Of the options that are wanted. Default: all.
        """
        words = []
        for name, value in self.to_dict().items():
            if names is None or name in names:
                for each in value if isinstance(value, tuple) else (value,):
                    words += [f"--{name.replace('_', '-')}", str(each)]
        return words

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**options)

    def __post_init__(self) -> None:
        choices = {
            "layout": Layout, "class_order": ClassOrder, "missing": Missing, "task": Task,
            "uncertain": Uncertain, "dims": Dims,
        }  # fmt: skip
        for name, choice in choices.items():
            values = get_args(choice)
            if (value := getattr(self, name)) not in values:
                words = list(map(str, values))
                raise UserError(
                    f"{name}={value!r}: must be one of {', '.join(words)}{near_matches(str(value), words)}"
                )
        for name in ("exclude", "label_columns", "targets"):
            if isinstance(value := getattr(self, name), str):
                raise UserError(f"{name}={value!r}: must be several, such as ({value!r},)")
        if self.page is not None and self.dims != 2:
            raise UserError(f"page={self.page}: must not be given with dims={self.dims}")
        if self.page is not None and self.page != "all" and (not isinstance(self.page, int) or self.page < 1):
            raise UserError(f"page={self.page!r}: must be a number from 1, or all")
        if self.max_pixels is not None and (not isinstance(self.max_pixels, int) or self.max_pixels < 1):
            raise UserError(f"max_pixels={self.max_pixels!r}: must be a number from 1")
        if self.label_columns and self.label_column is not None:
            raise UserError(f"label_columns: must not be given with label_column={self.label_column}")
        if self.label_columns and self.task in ("single-label", "regression"):
            raise UserError(f"label_columns: must not be given with task={self.task}")
        if self.targets and self.task in ("single-label", "multi-label"):
            raise UserError(f"targets: must not be given with task={self.task}")
        if self.targets and (self.label_columns or self.label_column is not None):
            columns = ", ".join(self.label_columns)
            given = f"label_columns={columns}" if columns else f"label_column={self.label_column}"
            raise UserError(f"targets: must not be given with {given}")
        if self.label_column is not None and self.task == "regression":
            raise UserError(
                "label_column: must not be given with task=regression; targets=… names its columns"
            )
        if self.wants_numbers and self.uncertain != "ignore":
            raise UserError(f"uncertain={self.uncertain}: must not be given with numbers to predict")
        if self.task == "single-label" and self.uncertain != "ignore":
            raise UserError(f"uncertain={self.uncertain}: must not be given with task=single-label")
        if self.group_pattern is not None and self.group_column is not None:
            raise UserError(f"group_pattern: must not be given with group_column={self.group_column}")
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root))
        if self.group_pattern is not None:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise UserError(
                    f"group_pattern={self.group_pattern!r}: not a regular expression ({error})"
                ) from error


def options_of_images(
    data: str | os.PathLike[str], task: Task, classes: Sequence[str], *, dims: int = 2
) -> DataOptions | None:
    """How data are read of which a model takes the images alone: None where they give it themselves.

    A manifest that holds the numbers of a regression need not have a column of classes.

    Args:
        data: A folder, a manifest or a named dataset.
        task: The model's.
        classes: Its classes, or the targets that it predicts.
        dims: Spatial axes of its input.
    """
    if task != "regression" or not Path(data).is_file():
        return None if dims == 2 else DataOptions(dims=cast(Dims, dims))
    return DataOptions().of_model(task, classes, dims=dims)
