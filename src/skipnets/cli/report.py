"""`skipnets report`."""

from __future__ import annotations

from pathlib import Path

from skipnets.cli.output import check_outputs, print_paths, progress


def report(
    run: Path,
    /,
    *,
    output: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
) -> None:
    """Write a report on a run: metrics, curves, confusion matrix and misclassified images in one HTML file.

    The file is self-contained and opens no connection, so it can be mailed, printed or opened from disk.

    For example:

        skipnets report runs/cats
        skipnets report runs/cats --output cats.html

    Args:
        run: A run folder.
        output: An .html file. Default: report.html in the run folder.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
        workers: Threads that read images. Default: one per core.
    """
    check_outputs(output)
    from skipnets.report import write_report

    with progress("reading the run") as show:
        path = write_report(
            run,
            output,
            device=device,
            threads=threads,
            workers=workers,
            progress=lambda what, done, total: show(done, total, what),
        )
    print_paths(path)
