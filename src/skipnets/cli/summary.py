"""`skipnets summary`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from skipnets.cli.output import check_outputs, print_paths, print_tables
from skipnets.errors import UserError
from skipnets.files import atomic_path
from skipnets.insight.memory import largest_batch
from skipnets.insight.summary import Summary, summarize
from skipnets.models.graph import BlockExecution
from skipnets.models.registry import parse_fields
from skipnets.tables import as_text


def summary(
    model: str,
    /,
    *,
    input_size: int | None = None,
    batch_size: str = "1",
    memory: str | None = None,
    execution: BlockExecution | None = None,
    depth: int = 1,
    format: Literal["text", "markdown", "csv", "json"] | None = None,  # noqa: A002
    json: bool = False,
    output: Path | None = None,
    model_options: dict[str, Any] | None = None,
) -> None:
    """Show a network's layers, parameters with their formulas, compute and memory.

    An own network is run on noise, and its layers are its modules.

    For example:

        skipnets summary densenet121 --depth 3
        skipnets summary runs/cats --input-size 320 --format markdown
        skipnets summary densenet121 --batch-size fit --memory 16GiB
        skipnets summary runs/own --trust networks:SmallNet --depth 2

    Args:
        model: A model's name, a model file or a run folder.
        input_size: Height and width of the images. Default: the size that the model was trained with, or 224
            (32 for CIFAR models).
        batch_size: Batch size of the memory totals; fit finds the largest one that trains in --memory.
        memory: Memory limit for training on a CPU with --batch-size fit, such as 16GiB.
        execution: How blocks run in training, for fit: plain, linear, or linear-recompute (of DenseNets).
            Default: plain.
        depth: 1 shows stages, 2 their layers or blocks, 3 the parts of those.
        format: text, markdown, csv or json. Default: text.
        json: The same as --format json.
        output: A file to write instead of printing.
        model_options: Fields to change in a named model, such as --model-options.growth-rate 24.
    """
    check_outputs(output)
    fields = parse_fields(model_options or {})
    size: dict[str, Any] = {"input_size": input_size, **fields}
    if batch_size == "fit":
        if memory is None:
            raise UserError("memory: must be given for batch_size=fit, such as 16GiB")
        images = largest_batch(model, memory, execution=execution or "plain", **size)
    else:
        for name, value in (("memory", memory), ("execution", execution)):
            if value is not None:
                raise UserError(f"{name}={value}: needs batch_size=fit")
        images = _parse_int("batch_size", batch_size)
    if json:
        if format not in (None, "json"):
            raise UserError(f"format={format}: must be json with --json")
        format = "json"  # noqa: A001
    format = format or "text"  # noqa: A001
    if batch_size == "fit":
        # JSON and CSV on standard output stay one document; JSON has the number as batch_size.
        to = sys.stderr if format in ("csv", "json") and output is None else sys.stdout
        to.write(f"largest batch that trains in {memory}: {images}\n")
    result = summarize(model, batch_size=images, **size)
    if format == "text" and output is None:
        print_tables([result.to_rich(depth)])
        return
    text = as_text([result.to_rich(depth)]) if format == "text" else _FORMATS[format](result, depth)
    text = text if text.endswith("\n") else text + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    with atomic_path(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print_paths(output)


_FORMATS = {"markdown": Summary.to_markdown, "csv": Summary.to_csv, "json": Summary.to_json}


def _parse_int(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}={text}: must be an integer or fit")
    return int(text)
