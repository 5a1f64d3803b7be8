"""`skipnets explain`."""

from __future__ import annotations

import sys
from pathlib import Path

from skipnets.classifier import load
from skipnets.cli.output import progress_bar
from skipnets.errors import UserError
from skipnets.insight.attribution import Method
from skipnets.insight.attribution import explain as explain_pictures
from skipnets.insight.overlay import save_explanations


def explain(
    model: Path,
    pictures: list[Path],
    /,
    *,
    output: Path,
    classes: list[str] | None = None,
    method: Method = "gradcam",
    stage: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Show what in a picture speaks for a class.

    For example:

        skipnets explain runs/cats a.jpg b.jpg --output seen.png
        skipnets explain runs/cats a.jpg --classes cat --classes dog --method occlusion --output seen.png

    Args:
        model: A model file or a run folder.
        pictures: Files.
        output: A .png file for the contact sheet; a folder of the same name gets every overlay (PNG) and map
            (NPY) at the picture's own resolution.
        classes: Which classes to explain. Default: for each picture the most probable one.
        method: gradcam, integrated-gradients or occlusion.
        stage: Where Grad-CAM looks: auto, or a stage such as layer3 or denseblock3; late ones know more,
            early ones are finer.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"output: {output} must end in .png")
    classifier = load(model, runtime="torch", device=device, threads=threads)
    with progress_bar() as progress:
        found = list(
            progress.track(
                explain_pictures(classifier, pictures, classes=classes, method=method, stage=stage),
                total=len(pictures),
                description="explaining",
            )
        )
    sheet, folder = save_explanations(found, output)
    print(f"{sheet}: {len(found)} pictures; overlays and maps in {folder}", file=sys.stderr)  # noqa: T201
