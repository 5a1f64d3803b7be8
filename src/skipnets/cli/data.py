"""`skipnets data`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.cli.output import check_outputs, print_json, print_paths, print_tables
from skipnets.data.copies import write_copies
from skipnets.data.manifest_files import MissingFilesError
from skipnets.data.options import DataOptions
from skipnets.data.sources import Duplicates, find_dataset
from skipnets.data.survey import survey
from skipnets.terminal import printable


def data(
    path: str,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    duplicates: Duplicates = "keep-together",
    copies: Path | None = None,
    json: bool = False,
    download: bool = False,
) -> int:
    """Show what a dataset contains and how it would be read and split, without training.

    For example:

        skipnets data photos
        skipnets data labels.csv --root images --group-column patient_id
        skipnets data scans --page all --json

    Args:
        path: A folder of images, a manifest (.csv, .tsv, .txt, .jsonl, .parquet) or a named dataset.
        options: Each is described below.
        fractions: Fractions of the training, validation and test splits, for data without splits. Default:
            0.7, 0.15 and 0.15, but about 5,000 validation images where that would be more.
        seed: Seed of the splits.
        duplicates: Copies of an image: keep them together in one split, where splits are drawn; drop all but
            one; or do not look for them.
        copies: A CSV file to write all copies to.
        json: Print the result as JSON.
        download: Allow downloading a named dataset.
    """
    check_outputs(copies, read=[path])
    try:
        dataset = find_dataset(
            path,
            seed=seed,
            fractions=fractions or "auto",
            download=download,
            duplicates=duplicates,
            options=options,
        )
    except MissingFilesError as error:
        if json:
            print_json({"data": path, "missing": error.names})
        else:
            sys.stdout.writelines(f"missing: {printable(name)}\n" for name in error.names)
        raise
    found = survey(dataset, path)
    if copies is not None:
        write_copies(copies, dataset.copies, dataset)
    if json:
        print_json({**found.to_dict(), "written": [] if copies is None else [str(copies)]})
    else:
        print_tables(found.tables())
        print_paths(copies)
    return 1 if found.unreadable else 0
