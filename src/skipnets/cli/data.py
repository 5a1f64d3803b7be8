"""`skipnets data`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from skipnets.cli.output import print_json
from skipnets.data.options import DataOptions
from skipnets.data.sources import find_dataset
from skipnets.data.survey import survey


def data(
    path: str,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    json: bool = False,
    download: bool = False,
) -> int:
    """Show what a dataset holds and how it would be read and split, without training.

    For example:

        skipnets data photos
        skipnets data labels.csv --root images --group-column patient_id
        skipnets data scans --page all --json

    Args:
        path: A folder of images, a manifest (.csv, .tsv, .txt, .jsonl, .parquet) or a named set.
        options: Each is described below.
        fractions: Sizes of the training, validation and test splits where the data does not come split.
        seed: Of drawing the splits.
        json: Print it as JSON.
        download: Allow a named set to be fetched.
    """
    found = survey(
        find_dataset(path, seed=seed, fractions=fractions, download=download, options=options), path
    )
    if json:
        print_json(found.to_dict())
    else:
        console = Console()
        Console(width=console.width if console.is_terminal else 200).print(found)
    return 1 if found.unreadable else 0
