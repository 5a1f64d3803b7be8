"""`skipnets compare`."""

from __future__ import annotations

from pathlib import Path

from skipnets.cli.output import print_json, print_tables


def compare(runs: list[Path], /, *, json: bool = False, resamples: int = 2000, seed: int = 0) -> None:
    """Compare runs on their common test images, and test whether they differ significantly.

    Every run is compared with the first: accuracy by McNemar's exact test, other metrics by a paired
    bootstrap; with several labels the AUROC of each by DeLong's test, and of numbers the mean absolute error
    by a paired bootstrap. Probabilities use the temperature of each model file.

    For example:

        skipnets compare runs/resnet runs/densenet
        skipnets compare runs/baseline runs/larger runs/longer --json

    Args:
        runs: Run folders, or folders that `skipnets evaluate --output` wrote; with the same test images.
        json: Print metrics and tests as JSON.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    from skipnets.report import compare as compare_runs

    comparison = compare_runs(runs, resamples=resamples, seed=seed)
    if json:
        print_json(comparison.to_dict())
    else:
        print_tables(comparison.tables())
