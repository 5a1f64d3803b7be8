"""`skipnets evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from skipnets.classifier import load
from skipnets.cli.output import check_outputs, print_failures, print_json, print_paths, print_tables, progress
from skipnets.data.options import DataOptions
from skipnets.evaluation.tables import check_table_path


def evaluate(
    model: Path,
    data: str | None = None,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    split: str = "test",
    json: bool = False,
    output: Path | None = None,
    predictions: Path | None = None,
    coverage: float | None = None,
    reject: float | None = None,
    tta: str = "none",
    batch_size: int = 64,
    download: bool = False,
    runtime: str = "auto",
    device: str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> int:
    """Evaluate a classifier on labeled images that it was not trained on.

    For example:

        skipnets evaluate runs/cats
        skipnets evaluate runs/cats/model.onnx new-photos --output evaluation

    Args:
        options: Each is described below.
        model: A model file, an export or a run folder.
        data: A folder of images, a manifest or a named dataset. Default: the model's training data,
            with the run's splits.
        split: train, val, test or all. Data without splits are all test.
        json: Print all metrics and the written files as JSON.
        output: A folder for evaluation.json, predictions.parquet, and confusion.png or, with numbers to
            predict, scatter.png.
        predictions: A .parquet, .csv or .jsonl file for all predictions.
        coverage: Measure sets of classes that contain the true one with this probability, such as 0.9, sets
            of labels that hold this share of an image's, or intervals of numbers; takes a calibrated model.
        reject: Measure what is left where this share of the most unusual images is rejected, such as 0.05.
        tta: Test-time augmentation, which averages the probabilities of several views of each image: none,
            flip (mirrored), crops (five, shifted by a sixteenth) or flip-crops.
        batch_size: Images per forward pass.
        download: Allow downloading a named dataset.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: 32-true (float32), bf16-mixed or 16-mixed. On an NVIDIA GPU, auto takes 16-mixed where the
            first 64 images keep their labels; elsewhere it is float32.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    check_outputs(predictions, folder=output, read=(model, data))
    from skipnets.evaluation import evaluate as evaluate_classifier

    if predictions is not None:
        check_table_path(predictions, "predictions")
    classifier = load(model, runtime=runtime, device=device, threads=threads, precision=precision, tta=tta)
    with progress("evaluating") as report:
        evaluation = evaluate_classifier(
            classifier,
            data,
            split=split,
            coverage=coverage,
            reject=reject,
            batch_size=batch_size,
            workers=workers,
            download=download,
            options=options,
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
        total = len(evaluation.names) + len(evaluation.failures)
        print_failures(evaluation.failures, of=total, dims=evaluation.dims)
    return 1 if evaluation.failures else 0
