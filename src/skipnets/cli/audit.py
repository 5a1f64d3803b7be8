"""`skipnets audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.cli.output import check_outputs, print_json, print_paths, print_tables, progress
from skipnets.data.options import DataOptions
from skipnets.errors import UserError


def audit(
    data: str,
    model: Path | None = None,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    output: Path | None = None,
    write: Path | None = None,
    drop: tuple[str, ...] = (),
    json: bool = False,
    download: bool = False,
    batch_size: int = 64,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> None:
    """Look for what may be wrong with a dataset, and write it as an HTML page and a CSV file.

    Unreadable files, images that stand out, copies, leaks between splits, doubtful classes, numbers far from
    all others and, with a model that was not trained on these images or out-of-fold predictions, probable
    label errors or unlikely numbers. Nothing is changed; --write writes a manifest without what is wrong, to
    train from.

    For example:

        skipnets audit photos
        skipnets audit photos runs/folds --output photos.html --write clean.csv
        skipnets audit labels.csv predictions.csv --root images --drop blank dark

    Args:
        data: A folder of images, a manifest or a named dataset.
        model: A run folder, a model file or an export; or a table of predictions (.parquet, .csv, .jsonl),
            with a column path and one for each class or target.
        options: Each is described below.
        output: An .html file; the table of all findings lies beside it as .csv.
            Default: audit-NAME.html for data of this name.
        write: A .csv file for the corrected manifest.
        drop: Further kinds of findings whose images the manifest leaves out, such as blank or blurred.
        json: Print the counts as JSON.
        download: Allow downloading a named dataset.
        batch_size: Images per forward pass.
        runtime: auto (the fastest that supports the network), native, onnxruntime, openvino or torch.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: the runtime's own choice.
        workers: Threads that read images. Default: one per core.
    """
    check_outputs(output, write, read=(data, model))
    from skipnets.report import audit as audit_dataset
    from skipnets.report.correction import check_listed, check_manifest

    output = Path(f"audit-{_name(data)}.html") if output is None else output
    table = output.with_suffix(".csv")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={output}: must end in .html")
    if any(Path(read).absolute() == table.absolute() for read in (data, model) if read is not None):
        raise UserError(f"output={output}: the table of findings would replace {table}; take another name")
    if write is not None and write.absolute() == table.absolute():
        raise UserError(f"write={write}: is where the table of findings goes; take another name")
    if write is not None:
        check_manifest(write, drop)
    elif drop:
        raise UserError("drop: is for the manifest that --write names")
    with progress("looking for images") as show:
        found = audit_dataset(
            data,
            model,
            options=options,
            download=download,
            batch_size=batch_size,
            runtime=runtime,
            device=device,
            threads=threads,
            workers=workers,
            # Not after the work, which may take long.
            opened=None if write is None else lambda dataset: check_listed(dataset, write, data),
            progress=lambda what, done, total: show(done, total, what),
        )
        if write is not None:
            found.write_manifest(write, drop=drop)
        found.write_findings(table)
        found.write_page(output, lambda what, done, total: show(done, total, what))
    written = [output, table, write]
    if json:
        print_json({**found.to_dict(), "written": [str(path) for path in written if path is not None]})
    else:
        print_tables(found.tables())
        print_paths(*written)


def _name(data: str) -> str:
    """The name of a folder, a file or a named dataset, without what its format adds."""
    path = Path(data)
    if path.is_dir():
        return path.resolve().name or "data"
    return path.stem or "data"
