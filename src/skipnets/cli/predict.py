"""`skipnets predict`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from skipnets.classifier import Classifier, Prediction, RegressionPrediction, load
from skipnets.cli.output import check_outputs, print_failures, print_json, print_paths, print_tables, progress
from skipnets.cli.paths import chosen_pages, expand_all
from skipnets.errors import UserError
from skipnets.evaluation.tables import check_table_path, write_table
from skipnets.prediction import SET_SEPARATOR, number_columns, uncertainty_columns
from skipnets.tables import make_table, number_text
from skipnets.terminal import printable

if TYPE_CHECKING:
    from skipnets.batch_prediction import BatchResult

_LOG = logging.getLogger("skipnets")


def predict(
    model: Path,
    images: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    output: Path | None = None,
    json: bool = False,
    top_k: int = 1,
    coverage: float | None = None,
    reject: float | None = None,
    shard: str | None = None,
    engine: Literal["local", "ray"] = "local",
    page: int | None = None,
    max_pixels: int | None = None,
    tta: str = "none",
    batch_size: int = 32,
    runtime: str = "auto",
    device: str = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> int:
    """Classify images, or predict their numbers.

    For example:

        skipnets predict runs/cats a.jpg holiday/ "scans/*.png" --top-k 3
        find . -name "*.jpg" | skipnets predict runs/cats - --output labels.csv
        skipnets predict runs/cats holiday/ --coverage 0.9 --reject 0.05
        skipnets predict runs/cats archive/ --output predictions/ --shard 3/16

    Args:
        model: A model file, an export or a run folder.
        images: Files, folders of images, patterns, or - for paths on standard input, one per line.
        output: A .csv, .jsonl or .parquet file to write instead of printing. Or a folder, for any number of
            images: they are read as they come, also from tar files, Parquet files and addresses such as
            s3://bucket/photos, rows are written as Parquet files, and a job that was stopped goes on.
        json: Print all predictions as JSON.
        top_k: Number of most probable classes to list for each image. With several labels an image, those
            that reach their thresholds are listed, and files hold the probabilities of all. With numbers to
            predict, there is one for each target.
        coverage: Also give each image the set of classes that contains the true one with this probability,
            such as 0.9; with several labels, those that hold this share of an image's labels on average; of
            numbers, an interval for each. The model must be calibrated (skipnets calibrate).
        reject: Mark images that are as unusual as this share of the calibration images, such as 0.05.
        shard: The part of the images to classify, such as 3/16; jobs of other shards may run elsewhere and
            write into the same folder.
        engine: local, or ray to divide the images among the machines of a Ray cluster (RAY_ADDRESS), which
            all see the model, the images and the folder at the same paths.
        page: Page of a TIFF file, frame or slice of a volume, from 1. Default: the first; of a volume, the
            middle one.
        max_pixels: The most pixels that an image may have. Default: 89,478,485.
        tta: Test-time augmentation, which averages the probabilities of several views of each image: none,
            flip (mirrored), crops (five, shifted by a sixteenth) or flip-crops.
        batch_size: Images per forward pass.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: 32-true (float32), bf16-mixed or 16-mixed. On an NVIDIA GPU, auto takes 16-mixed where the
            first 64 images keep their labels; elsewhere it is float32.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    check_outputs(output, read=(model, *images))
    if output is not None and (output.is_dir() or not output.suffix):
        if page is not None or max_pixels is not None:
            option = f"page={page}" if page is not None else f"max_pixels={max_pixels}"
            raise UserError(f"{option}: must not be given with a folder as output")
        loading = {
            "runtime": runtime,
            "device": device,
            "threads": threads,
            "precision": precision,
            "tta": tta,
        }
        classify = partial(_classify, model, images, output, shard, engine, loading)
        return _to_folder(
            classify,
            output,
            json,
            whole=shard is None,
            top_k=top_k,
            coverage=coverage,
            reject=reject,
            batch_size=batch_size,
            workers=workers,
        )
    if shard is not None or engine != "local":
        option = f"shard={shard}" if shard is not None else f"engine={engine}"
        raise UserError(f"{option}: needs --output with a folder")
    if output is not None:
        check_table_path(output, "output")
    classifier = load(model, runtime=runtime, device=device, threads=threads, precision=precision, tta=tta)
    paths = expand_all(images, dims=classifier.preprocessing.dims)
    images_of = chosen_pages(paths, page=page, max_pixels=max_pixels)
    predictions = classifier.predict_iter(
        images_of, top_k, coverage=coverage, reject=reject, batch_size=batch_size, workers=workers
    )
    rows = []
    with progress(f"predicting ({classifier.runtime.name})") as report:
        for row in predictions:
            rows.append(row)
            report(len(rows), len(paths))
    if output is not None:
        asked = {"coverage": coverage is not None, "reject": reject is not None}
        write_table(output, _columns(rows, min(top_k, len(classifier.classes)), classifier, **asked))
    if json:
        written = [] if output is None else [str(output)]
        print_json({"predictions": list(map(_plain, rows)), "written": written})
    elif output is None:
        _print(rows)
    else:
        print_paths(output)
    failures = {row.source: row.error for row in rows if row.error is not None}
    if failures:
        print_failures(failures, of=len(rows), dims=classifier.preprocessing.dims)
    return 1 if failures else 0


def _classify(
    model: Path,
    images: list[str],
    output: Path,
    shard: str | None,
    engine: str,
    loading: dict[str, Any],
    **options: Any,
) -> BatchResult:
    """Classify into a folder, by one of the engines."""
    if engine == "ray":
        if shard is not None:
            raise UserError(f"shard={shard}: engine=ray makes its own shards")
        from skipnets.ray_prediction import predict_with_ray

        return predict_with_ray(model, images, output, **loading, **options)
    from skipnets.batch_prediction import predict_to_folder
    from skipnets.data.streams import Shard, check_addresses

    check_addresses(images)  # before the model is loaded
    part = Shard() if shard is None else Shard.parse(shard)
    return predict_to_folder(load(model, **loading), images, output, shard=part, **options)


def _to_folder(
    classify: Callable[..., BatchResult], output: Path, json: bool, *, whole: bool, **options: Any
) -> int:
    """Classify into a folder, with progress on standard error."""
    with progress("predicting") as report:
        result = classify(progress=lambda so_far: report(so_far.rows), **options)
    if json:
        counts = {"rows": result.rows, "failed": result.failed, "skipped": result.skipped}
        print_json({**counts, "written": list(map(str, result.files))})
    else:
        _LOG.info("%s images, %s failed", f"{result.rows:,}", f"{result.failed:,}")
        print_paths(*(result.files or [output]))
    if result.skipped:
        _LOG.info("%s images had their rows already", f"{result.skipped:,}")
    if result.failed:
        print_failures(result.failures, of=result.rows)
        if result.failed > len(result.failures):
            _LOG.info("%s failed in all; the column error has each reason", f"{result.failed:,}")
    nothing = whole and not result.rows and not result.skipped and not any(output.glob("part-*.parquet"))
    if nothing:
        _LOG.warning("there are no images: in folders, files count by their endings, such as .jpg or .dcm")
    return 1 if result.failed or nothing else 0


def _print(rows: Sequence[Prediction]) -> None:
    """A table on a terminal; tab-separated lines elsewhere."""
    if any(isinstance(row, RegressionPrediction) for row in rows):
        _print_numbers(rows)
        return
    several_labels = any(row.label is None and row.error is None for row in rows)
    if not sys.stdout.isatty():
        for row in rows:
            ranking = [text for label, share in _listed(row) for text in (label, f"{share:.4f}")]
            nothing = "failed" if row.error is not None else "(none)"
            words = [row.source, *(ranking or [nothing]), *_uncertainty(row).values()]
            sys.stdout.write("\t".join(map(printable, words)) + "\n")
        return
    if several_labels:
        labels = [", ".join(f"{label} {share:.1%}" for label, share in _listed(row)) for row in rows]
        judged = list(map(_uncertainty, rows))
        more = {name: "left" for each in judged for name in each}
        cells = (
            [
                row.source,
                text or ("failed" if row.error is not None else "(none)"),
                *(each.get(name, "") for name in more),
            ]
            for row, text, each in zip(rows, labels, judged, strict=True)
        )
        headings: Any = {"image": "left", "labels": "left", **more}
        print_tables([make_table(headings, cells)])
        return
    several = any(len(row.ranking) > 1 for row in rows)
    others = [", ".join(f"{label} {share:.1%}" for label, share in row.ranking[1:]) for row in rows]
    uncertainty = list(map(_uncertainty, rows))
    more = {name: "left" for row in uncertainty for name in row}
    columns: Any = {
        "image": "left",
        "class": "left",
        "probability": "right",
        **({"next": "left"} if several else {}),
        **more,
    }
    table = make_table(
        columns,
        (
            [
                row.source,
                row.label or "failed",
                f"{row.probability or 0:.1%}",
                *([other] if several else []),
                *(judged.get(name, "") for name in more),
            ]
            for row, other, judged in zip(rows, others, uncertainty, strict=True)
        ),
    )
    print_tables([table])


def _print_numbers(rows: Sequence[Prediction]) -> None:
    """The numbers of each image: names and numbers between tabs, or a column for each target."""
    predicted = [row for row in rows if isinstance(row, RegressionPrediction)]
    targets = next(([name for name, _ in row.values] for row in predicted if row.values), [])
    if not sys.stdout.isatty():
        for row in predicted:
            limits = {name: [low, high] for name, low, high in row.intervals}
            words = [
                text
                for name, value in row.values
                for text in (name, *map(number_text, (value, *limits.get(name, ()))))
            ]
            words = [row.source, *(words or ["failed"]), *_uncertainty(row).values()]
            sys.stdout.write("\t".join(map(printable, words)) + "\n")
        return
    judged = list(map(_uncertainty, rows))
    more = {name: "left" for each in judged for name in each}
    columns: Any = {"image": "left", **dict.fromkeys(targets, "right"), **more}
    cells = (
        [
            row.source,
            *(row.text(name) if row.values else "failed" for name in targets),
            *(each.get(name, "") for name in more),
        ]
        for row, each in zip(predicted, judged, strict=True)
    )
    print_tables([make_table(columns, cells)])


def _uncertainty(row: Prediction) -> dict[str, str]:
    """Heading → text of what was asked for besides the most probable classes."""
    cells = {}
    if row.prediction_set is not None:
        cells["set"] = SET_SEPARATOR.join(row.prediction_set)
    if row.p_value is not None:
        cells["unusual"] = f"{'rejected' if row.rejected else 'accepted'} (p={row.p_value:.4f})"
    return cells


def _plain(row: Prediction) -> dict[str, Any]:
    """The fields for JSON, without those that were not asked for."""
    without = {name for name in ("prediction_set", "p_value", "rejected") if getattr(row, name) is None} | (
        {"intervals"} if isinstance(row, RegressionPrediction) and not row.intervals else set()
    )
    return {name: value for name, value in asdict(row).items() if name not in without}


def _listed(row: Prediction) -> Sequence[tuple[str, float]]:
    """The classes of an image that are shown: its ranking, or the labels that are found in it."""
    if row.label is not None:
        return row.ranking
    return [(label, share) for label, share in row.ranking if label in row.labels]


def _columns(
    rows: Sequence[Prediction], top_k: int, classifier: Classifier, *, coverage: bool, reject: bool
) -> dict[str, list[Any]]:
    """Columns with one row per image: path, label, probability, then label_2, probability_2 …, and error.

    Before the error, there are the columns of `skipnets.prediction.uncertainty_columns`.
    Of a multi-label classifier: path, labels ("cat|dog"), "p:NAME" for each label, and error. Of a
    regression: path, a column for each target, and error.
    """
    columns: dict[str, list[Any]] = {"path": [row.source for row in rows]}
    if classifier.task == "regression":
        columns |= number_columns(rows, classifier.classes, coverage=coverage)
        columns |= uncertainty_columns(rows, coverage=False, reject=reject)
        return {**columns, "error": [row.error for row in rows]}
    if classifier.task == "multi-label":
        shares = [dict(row.ranking) for row in rows]
        columns["labels"] = [None if row.error else "|".join(row.labels) for row in rows]
        columns |= {f"p:{name}": [share.get(name) for share in shares] for name in classifier.classes}
        columns |= uncertainty_columns(rows, coverage=coverage, reject=reject)
        return {**columns, "error": [row.error for row in rows]}
    for rank in range(top_k):
        suffix = f"_{rank + 1}" if rank else ""
        ranked = [(None, None) if row.error else row.ranking[rank] for row in rows]
        columns[f"label{suffix}"] = [label for label, _ in ranked]
        columns[f"probability{suffix}"] = [probability for _, probability in ranked]
    columns |= uncertainty_columns(rows, coverage=coverage, reject=reject)
    return {**columns, "error": [row.error for row in rows]}
