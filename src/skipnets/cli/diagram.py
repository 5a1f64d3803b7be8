"""`skipnets diagram`."""

from __future__ import annotations

from pathlib import Path

from skipnets.cli.output import check_outputs, print_paths
from skipnets.insight.diagram import draw_diagram
from skipnets.insight.source import Source


def diagram(
    models: list[str], /, *, output: Path, block: int | None = None, input_size: int | None = None
) -> None:
    """Draw networks: dense blocks with every connection, residual stages with every shortcut.

    An own network is drawn as its modules, with what skips some of them.

    For example:

        skipnets diagram densenet121 --output densenet121.svg
        skipnets diagram resnet34 densenet121 --output both.png
        skipnets diagram densenet121 --block 1 --output block.svg
        skipnets diagram runs/own --trust networks:SmallNet --output own.svg

    Args:
        models: Models' names, model files or run folders; several are drawn side by side.
        output: An .svg, .png or .pdf file.
        block: Draw only this dense block or residual stage, counted from 1; of an own network, this
            one of the modules that are drawn.
        input_size: Height and width of the images. Default: each model's default size.
    """
    check_outputs(output)
    sources: list[Source] = list(models)
    draw_diagram(sources, output=output, block=block, input_size=input_size)
    print_paths(output)
