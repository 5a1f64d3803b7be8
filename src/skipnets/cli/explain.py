"""`skipnets explain`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from skipnets.classifier import load
from skipnets.cli.output import check_outputs, print_failures, print_paths, progress
from skipnets.cli.paths import chosen_pages, expand_all
from skipnets.data.decoding import ImageDecodeError
from skipnets.errors import UserError
from skipnets.files import is_same
from skipnets.insight.attribution import Explanation, Method
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
    page: int | None = None,
    max_pixels: int | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> int:
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
        classes: Classes to explain. Default: each image's most probable class; of several labels, all that
            are found in it.
        method: gradcam, integrated-gradients or occlusion.
        stage: Stage for Grad-CAM: auto, or a name such as layer3 or denseblock3; late stages are more
            specific to the class, early stages have finer maps.
        page: Page of a TIFF file, frame or slice of a volume, from 1. Default: the first; of a volume, the
            middle one.
        max_pixels: The most pixels that an image may have. Default: 89,478,485.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads that compute. Default: PyTorch's own choice.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"output={output}: must end in .png")
    overlays = output.with_suffix("")
    check_outputs(output, folder=overlays, read=(model, *images))
    classifier = load(model, runtime="torch", device=device, threads=threads)
    paths = expand_all(images, dims=classifier.preprocessing.dims)
    check_outputs(output, read=paths)
    places = {place for path in (model, *map(Path, paths)) for place in (path, *path.absolute().parents)}
    if any(is_same(overlays, place) for place in places):
        raise UserError(
            f"output={output}: overlays would go to the folder {overlays}, which this command reads; give "
            "another name"
        )
    failures: dict[str, str] = {}

    def explanations() -> Iterator[list[Explanation]]:
        for done, path in enumerate(paths, 1):
            try:
                image = chosen_pages([path], page=page, max_pixels=max_pixels)
                yield from explain_images(classifier, image, classes=classes, method=method, stage=stage)
            except ImageDecodeError as error:
                failures[path] = str(error)
            report(done, len(paths))
        if len(failures) == total:
            raise UserError(f"images: none can be read: {next(iter(failures.values()))}")

    total = len(set(paths))
    with progress("explaining") as report:
        sheet, folder = save_explanations(explanations(), output)
    print_paths(sheet, folder)
    if failures:
        print_failures(failures, of=len(paths), dims=classifier.preprocessing.dims)
    return 1 if failures else 0
