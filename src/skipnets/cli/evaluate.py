"""`skipnets evaluate`."""

from __future__ import annotations

from pathlib import Path

from skipnets.classifier import load
from skipnets.cli.output import print_failures, print_json, print_paths, print_tables, progress
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
        json: Print JSON: every metric, and which files were written.
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
    with progress("evaluating") as report:
        evaluation = evaluate_classifier(
            classifier,
            data,
            split=split,
            batch_size=batch_size,
            workers=workers,
            download=download,
            progress=report,
        )
    if output is not None:
        evaluation.save(output)
    if predictions is not None:
        evaluation.write_predictions(predictions)
    if json:
        written = [str(path) for path in (output, predictions) if path is not None]
        print_json({**evaluation.to_dict(), "written": written})
    else:
        print_tables(evaluation.tables())
        print_paths(output, predictions)
    if evaluation.failures:
        print_failures(evaluation.failures, of=len(evaluation.names) + len(evaluation.failures))
    return 1 if evaluation.failures else 0
