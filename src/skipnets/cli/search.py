"""`skipnets search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.classifier import load
from skipnets.cli.output import check_outputs, print_failures, print_json, print_paths, print_tables, progress
from skipnets.cli.paths import expand, expand_all
from skipnets.insight.neighbors import Search, check_search_output
from skipnets.insight.neighbors import search as search_images
from skipnets.terminal import printable


def search(
    model: Path,
    images: Annotated[str, Parameter(allow_leading_hyphen=True)],
    query: list[str],
    /,
    *,
    count: int = 10,
    output: Path | None = None,
    index: Path | None = None,
    json: bool = False,
    batch_size: int = 32,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> int:
    """Find the images that are most similar to a query, as the network sees them.

    Images are compared by the cosine of their embeddings, the pooled features before the classifier head.

    For example:

        skipnets search runs/cats photos/ a.jpg
        skipnets search runs/cats photos/ a.jpg b.jpg --output similar.html
        skipnets search runs/cats photos/ a.jpg --index photos.safetensors

    Args:
        model: A model file, an export or a run folder.
        images: A folder of images, a pattern, a file, or - for paths on standard input, one per line.
        query: Files, folders or patterns: for each image the most similar ones are looked for.
        count: Number of images to find for each query.
        output: A contact sheet (.png, .html) or a table (.csv, .jsonl, .parquet) to write instead of
            printing.
        index: A .safetensors file that keeps the embeddings: the next search embeds only images that are
            new or have changed.
        json: Print the results as JSON.
        batch_size: Images per forward pass.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    check_outputs(output, index, read=(model, images, *query))
    if output is not None:
        check_search_output(output)
    classifier = load(model, runtime=runtime, device=device, threads=threads)
    dims = classifier.preprocessing.dims
    paths, queries = expand(images, dims=dims), expand_all(query, argument="query", dims=dims)
    with progress(f"embedding ({classifier.runtime.name})") as report:
        found = search_images(
            classifier,
            paths,
            query=queries,
            count=count,
            index=index,
            batch_size=batch_size,
            workers=workers,
            progress=report,
        )
    if output is not None:
        found.save(output)
    if json:
        print_json({**found.to_dict(), "written": [] if output is None else [str(output)]})
    elif output is not None:
        print_paths(output)
    else:
        _print(found)
    if found.failures:
        print_failures(found.failures, of=len(paths), dims=dims)
    return 1 if found.failures else 0


def _print(found: Search) -> None:
    """Tables on a terminal; tab-separated lines elsewhere."""
    if sys.stdout.isatty():
        print_tables(found.tables())
        return
    for query, row in zip(found.queries, found.neighbors, strict=True):
        for each in row:
            words = (query, each.source, f"{each.similarity:.4f}")
            sys.stdout.write("\t".join(map(printable, words)) + "\n")
