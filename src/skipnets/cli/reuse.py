"""`skipnets reuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from skipnets import run_folder
from skipnets.classifier import load
from skipnets.cli.output import check_outputs, print_failures, print_paths
from skipnets.data.options import DataOptions, options_of_images
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.evaluation.evaluating import open_own_images
from skipnets.insight.feature_reuse import ResidualReuse, check_reuse_output, needs_images, save_reuse
from skipnets.insight.feature_reuse import reuse as measure_reuse


def reuse(
    model: Path,
    data: str | None = None,
    /,
    *,
    options: Annotated[DataOptions | None, Parameter(name="*")] = None,
    output: Path,
    images: int = 256,
    download: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Plot feature reuse of dense layers, or the contribution of each residual branch.

    For example:

        skipnets reuse runs/cats --output reuse.png

    Args:
        options: Each is described below.
        model: A model file or a run folder.
        data: For residual branches: a folder of images, a manifest or a named dataset. Default: the model's
            training data.
        output: A .png, .svg or .pdf file; its data are written next to it as .csv.
        images: Maximum number of images to measure on.
        download: Allow downloading a named dataset.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
    """
    check_reuse_output(output)
    table = output.with_suffix(".csv")
    check_outputs(output, table, read=(model, data))
    if images < 1:
        raise UserError(f"images={images}: must be at least 1")
    classifier = load(model, runtime="torch", device=device, threads=threads)
    if data is None and classifier.path is not None:
        own = (str(classifier.provenance.get("data")), classifier.path.with_name(run_folder.SPLITS))
        check_outputs(output, table, read=own)
    sources = None
    if needs_images(classifier):
        dataset = (
            open_own_images(classifier, download=download)
            if data is None
            else open_dataset(
                data,
                fractions=None,
                download=download,
                options=options or options_of_images(data, classifier.task, classifier.classes),
            )
        )
        if dataset.images is None:
            check_outputs(output, read=map(dataset.file, range(len(dataset))))
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(images, len(dataset))).astype(int))
        sources = [dataset.source(int(index)) for index in chosen]
    result = measure_reuse(classifier, sources)
    print_paths(*save_reuse(result, output))
    if sources is not None and isinstance(result, ResidualReuse) and result.failures:
        print_failures(result.failures, of=len(sources))
        return 1
    return 0
