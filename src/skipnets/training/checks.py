"""Whether what a run is resumed on is what it began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from skipnets import run_folder
from skipnets.axes import INPUTS
from skipnets.data.contents import contents
from skipnets.data.dataset import ImageDataset
from skipnets.data.splits import read_split_rows
from skipnets.errors import UserError, listed
from skipnets.training.config import END_OF_FILE
from skipnets.training.run import Run

# Images whose content is compared; a folder of replaced images shows in any few of them.
SAMPLE = 200


def check_files(run: Run) -> None:
    """Check that run.yaml and splits.csv are whole.

    Raises:
        UserError: If one was cut short.
    """
    text = run.config_file.read_text(encoding="utf-8")
    if "format_version: 2" in text and END_OF_FILE not in text:
        raise UserError(f"resume: {run.config_file} was cut short: it lacks its last line, {END_OF_FILE!r}")
    run_folder.check_splits(run.folder)


def check_images(splits: Path, dataset: ImageDataset) -> None:
    """Check that images are still those that the run began with: size and hash of a sample of them.

    Args:
        splits: The run's splits.csv.
        dataset: The images that the run is resumed on.

    Raises:
        UserError: If some were replaced; it names them.
    """
    rows = {row.path: row for row in read_split_rows(splits)}
    every = max(len(dataset) // SAMPLE, 1)
    positions = np.arange(0, len(dataset), every)
    if dataset.members is not None:  # a shard is replaced as a whole
        positions = np.union1d(positions, np.unique(dataset.members.numbers, return_index=True)[1])
    # What an index of shards says of contents is not taken for what is there.
    sample = replace(dataset.select(positions), contents=None)
    replaced = [
        name if dataset.members is None else f"{name} in {sample.file(index).name}"
        for index, (name, content) in enumerate(zip(sample.names, contents(sample), strict=True))
        if (row := rows.get(name)) is not None
        and row.hash
        and content.hash
        and (row.size, row.hash) != (content.size, content.hash)
    ]
    if replaced:
        kind = INPUTS[dataset.dims]
        raise UserError(
            f"resume: {len(replaced):,} of {len(sample):,} {kind} looked at are not those that the run began "
            f"with: {listed(replaced)}; put them back, or train again on the new ones"
        )
