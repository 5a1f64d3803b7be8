"""`skipnets shard`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.cli.output import check_outputs, print_json, print_paths, progress
from skipnets.data.listing import counted
from skipnets.data.options import DataOptions
from skipnets.data.sharding import MEBIBYTES, write_shards

_LOG = logging.getLogger("skipnets")


def shard(
    data: str,
    /,
    *,
    out: Path,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    shard_size: int = MEBIBYTES,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Write a dataset as tar shards with an index, to train from where there are too many files.

    Files are stored as they are. Classes, groups and the splits that the data gives are kept; other splits
    are drawn when the shards are trained from. A job that was stopped goes on when it is started again.

    For example:

        skipnets shard photos --out /scratch/photos
        skipnets shard labels.csv --group-column patient_id --out scans
        skipnets train /scratch/photos --out runs/photos

    Args:
        data: A folder of images or a manifest (.csv, .tsv, .txt, .jsonl, .parquet).
        out: The folder for the shards: a new one, or one to go on in.
        options: Each is described below.
        shard_size: Length of a shard in MiB; an image larger than that is a shard of its own.
        seed: Seed of the order in which images are stored.
        json: Print what was written as JSON.
    """
    check_outputs(folder=out)
    with progress("writing shards") as report:
        written = write_shards(data, out, shard_size=shard_size, seed=seed, options=options, progress=report)
    if json:
        print_json(written.to_dict())
        return 0
    _LOG.info(
        "%s in %s of %s bytes%s",
        counted(written.images, "image"),
        counted(written.shards, "shard"),
        f"{written.bytes:,}",
        f" ({written.kept:,} from an earlier job)" if written.kept else "",
    )
    print_paths(written.index)
    return 0
