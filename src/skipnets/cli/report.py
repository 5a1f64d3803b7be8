"""`skipnets report`."""

from __future__ import annotations

import sys
from pathlib import Path

from skipnets.cli.output import progress_bar


def report(
    run: Path,
    /,
    *,
    output: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 2,
) -> None:
    """Show where a run's classifier fails: figures, curves, confusions and images in one HTML file.

    The file needs nothing beside it and opens no connection; mail it, print it, open it from the disk.

    For example:

        skipnets report runs/cats
        skipnets report runs/cats --output cats.html

    Args:
        run: A run folder.
        output: An .html file. Default: report.html in the run folder.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
        workers: Threads that read images.
    """
    from skipnets.report import write_report

    with progress_bar() as progress:
        task = progress.add_task("reading the run", total=None)
        path = write_report(
            run,
            output,
            device=device,
            threads=threads,
            workers=workers,
            progress=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    sys.stdout.write(f"{path}\n")
