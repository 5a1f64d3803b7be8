"""`skipnets evaluate`, and the tables of figures that training ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from skipnets.classifier import load
from skipnets.cli.output import print_failures, print_json, print_table, progress_bar, properties_table
from skipnets.evaluation.tables import check_table_path


def evaluate(
    model: Path,
    data: str | None = None,
    /,
    *,
    split: str = "test",
    json: bool = False,
    output: Path | None = None,
    predictions: Path | None = None,
    batch_size: int = 64,
    download: bool = False,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    workers: int = 2,
) -> int:
    """Measure a classifier on labeled images that it has not seen.

    For example:

        skipnets evaluate runs/cats
        skipnets evaluate runs/cats/model.safetensors new-photos --split all --output evaluation

    Args:
        model: A model file or a run folder.
        data: A folder of images, a manifest or a named set. Default: what the model was trained on, with
            the splits that were drawn then.
        split: train, val, test or all. Data that are not split are all test.
        json: Print every figure as JSON.
        output: A folder to write evaluation.json, confusion.png and predictions.parquet to.
        predictions: A .parquet, .csv or .jsonl file to write every prediction to.
        batch_size: Images that go through the network at once.
        download: Allow a named set to be fetched.
        runtime: What runs the network; auto takes the fastest that can.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images.
    """
    from skipnets.evaluation import evaluate as evaluate_classifier

    if predictions is not None:
        check_table_path(predictions)
    classifier = load(model, runtime=runtime, device=device, threads=threads)
    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=None)
        evaluation = evaluate_classifier(
            classifier,
            data,
            split=split,
            batch_size=batch_size,
            workers=workers,
            download=download,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if output is not None:
        evaluation.save(output)
    if predictions is not None:
        evaluation.write_predictions(predictions)
    figures = evaluation.to_dict()
    if json:
        print_json(figures)
    else:
        print_figures(figures)
    if evaluation.failures:
        print_failures(evaluation.failures, of=len(evaluation.names) + len(evaluation.failures))
    return 1 if evaluation.failures else 0


def print_figures(figures: Mapping[str, Any]) -> None:
    """The figures of `Evaluation.to_dict()` as two tables, with what to beware of below."""
    low, high = figures["accuracy_interval"]
    rows = {
        "images": f"{figures['images']:,} ({figures['data']}, {figures['split']})",
        "accuracy": f"{figures['accuracy']:.2%}  (95 % interval {low:.2%} to {high:.2%})",
        "balanced accuracy": f"{figures['balanced_accuracy']:.2%}",
        "top-5 accuracy": "" if figures["top5"] is None else f"{figures['top5']:.2%}",
        "negative log-likelihood": f"{figures['nll']:.4f}",
        "calibration error (ECE)": f"{figures['ece']:.2%}",
        "mean AUROC": _share(figures["macro_auroc"], digits=4),
    }
    print_table(properties_table({name: value for name, value in rows.items() if value}))
    classes = Table(box=None, pad_edge=False)
    classes.add_column("class", overflow="fold")
    for heading in ("precision", "recall", "F1", "AUROC", "images"):
        classes.add_column(heading, justify="right")
    for row in figures["classes"]:
        shares = [_share(row[key], digits=3) for key in ("precision", "recall", "f1", "auroc")]
        classes.add_row(row["name"], *shares, f"{row['support']:,}")
    print_table(classes)
    for warning in figures["warnings"]:
        print_table(properties_table({"note": warning}))


def _share(value: float | None, *, digits: int) -> str:
    """A share, or a dash where it is undefined: nothing is there to be right or wrong about."""
    return "–" if value is None else f"{value:.{digits}f}"
