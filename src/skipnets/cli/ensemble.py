"""`skipnets ensemble`."""

from __future__ import annotations

from pathlib import Path

from skipnets.cli.output import print_json, print_tables
from skipnets.run_folder import MODEL


def ensemble(models: list[Path], /, *, out: Path, json: bool = False) -> None:
    """Make one model of several: an ensemble, which averages their probabilities or numbers.

    Every command takes the folder as any other model. Images that one of the networks was trained on count as
    training images of the ensemble, so skipnets evaluate takes those that are new to all: train runs for an
    ensemble on the same split (skipnets train --splits). Calibration is left out, as the ensemble needs its
    own.

    For example:

        skipnets ensemble runs/densenet runs/resnet --out runs/both
        skipnets evaluate runs/both

    Args:
        models: Two or more model files or run folders with the same classes and preprocessing; the networks
            may differ. Of a run with folds, each fold's network counts.
        out: A new folder for model.safetensors and splits.csv.
        json: Print networks, images and notes as JSON.
    """
    from skipnets.ensembling import make_ensemble

    made = make_ensemble(models, out)
    if json:
        print_json({**made.to_dict(), "written": [str(made.folder / MODEL)]})
    else:
        print_tables(made.tables())
