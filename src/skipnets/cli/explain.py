"""`skipnets explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.classifier import load
from skipnets.cli.output import print_paths, progress_bar
from skipnets.cli.paths import expand
from skipnets.errors import UserError
from skipnets.insight.attribution import Method
from skipnets.insight.attribution import explain as explain_images
from skipnets.insight.overlays import save_explanations


def explain(
    model: Path,
    images: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    /,
    *,
    output: Path,
    classes: list[str] | None = None,
    method: Method = "gradcam",
    stage: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Show which parts of an image contribute to a class.

    For example:

        skipnets explain runs/cats a.jpg b.jpg --output seen.png
        skipnets explain runs/cats a.jpg --classes cat --output cat.png
        skipnets explain runs/cats a.jpg --method occlusion --output seen.png

    Args:
        model: A model file or a run folder.
        images: Files, folders of images, patterns, or - for paths on standard input, one per line.
        output: A .png file for the contact sheet; a folder of the same name gets every overlay (PNG) and map
            (NPY) at the image's own resolution.
        classes: Classes to explain. Default: each image's most probable class.
        method: gradcam, integrated-gradients or occlusion.
        stage: Stage for Grad-CAM: auto, or a name such as layer3 or denseblock3; late stages are more
            specific to the class, early stages have finer maps.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"output: {output} must end in .png")
    paths = [path for word in images for path in expand(word)]
    classifier = load(model, runtime="torch", device=device, threads=threads)
    explanations = explain_images(classifier, paths, classes=classes, method=method, stage=stage)
    with progress_bar() as progress:
        sheet, folder = save_explanations(
            progress.track(explanations, total=len(paths), description="explaining"), output
        )
    print_paths(sheet, folder)
