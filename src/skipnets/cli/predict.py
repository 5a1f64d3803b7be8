"""`skipnets predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from skipnets.classifier import Prediction, load
from skipnets.cli.output import print_failures, print_json, print_paths, print_tables, progress_bar
from skipnets.cli.paths import chosen_pages, expand
from skipnets.evaluation.tables import check_table_path, write_table
from skipnets.tables import make_table, printable


def predict(
    model: Path,
    images: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    output: Path | None = None,
    json: bool = False,
    top_k: int = 1,
    page: int | None = None,
    max_pixels: int | None = None,
    batch_size: int = 32,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> int:
    """Classify images.

    For example:

        skipnets predict runs/cats a.jpg holiday/ "scans/*.png" --top-k 3
        find . -name "*.jpg" | skipnets predict runs/cats - --output labels.csv

    Args:
        model: A model file, an export or a run folder.
        images: Files, folders of images, patterns, or - for paths on standard input, one per line.
        output: A .csv, .jsonl or .parquet file to write instead of printing.
        json: Print all predictions as JSON.
        top_k: Number of most probable classes to list for each image.
        page: Page of a TIFF file, frame or slice of a volume, from 1. Default: the first; of a volume, the
            middle one.
        max_pixels: The most pixels that an image may have. Default: 89,478,485.
        batch_size: Images per forward pass.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per processor, at most 8.
    """
    if output is not None:
        check_table_path(output, "output")
    paths = [path for word in images for path in expand(word)]
    classifier = load(model, runtime=runtime, device=device, threads=threads)
    images_of = chosen_pages(paths, page=page, max_pixels=max_pixels)
    predictions = classifier.predict_iter(images_of, top_k, batch_size=batch_size, workers=workers)
    with progress_bar() as progress:
        rows = list(
            progress.track(
                predictions, total=len(paths), description=f"predicting ({classifier.runtime.name})"
            )
        )
    if output is not None:
        write_table(output, _columns(rows, min(top_k, len(classifier.classes))))
    if json:
        written = [] if output is None else [str(output)]
        print_json({"predictions": [asdict(row) for row in rows], "written": written})
    elif output is None:
        _print(rows)
    else:
        print_paths(output)
    failures = {row.source: row.error for row in rows if row.error is not None}
    if failures:
        print_failures(failures, of=len(rows))
    return 1 if failures else 0


def _print(rows: Sequence[Prediction]) -> None:
    """A table on a terminal; tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            ranking = [text for label, probability in row.ranking for text in (label, f"{probability:.4f}")]
            sys.stdout.write("\t".join(map(printable, [row.source, *(ranking or ["failed"])])) + "\n")
        return
    several = any(len(row.ranking) > 1 for row in rows)
    others = [", ".join(f"{label} {share:.1%}" for label, share in row.ranking[1:]) for row in rows]
    table = make_table(
        {"image": "left", "class": "left", "probability": "right", **({"next": "left"} if several else {})},
        (
            [row.source, row.label or "failed", f"{row.probability or 0:.1%}", *([other] if several else [])]
            for row, other in zip(rows, others, strict=True)
        ),
    )
    print_tables([table])


def _columns(rows: Sequence[Prediction], top_k: int) -> dict[str, list[Any]]:
    """Columns with one row per image: path, label, probability, then label_2, probability_2 …, and error."""
    columns: dict[str, list[Any]] = {"path": [row.source for row in rows]}
    for rank in range(top_k):
        suffix = f"_{rank + 1}" if rank else ""
        ranked = [(None, None) if row.error else row.ranking[rank] for row in rows]
        columns[f"label{suffix}"] = [label for label, _ in ranked]
        columns[f"probability{suffix}"] = [probability for _, probability in ranked]
    return {**columns, "error": [row.error for row in rows]}
