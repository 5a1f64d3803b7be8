"""Colors of a drawing tell layers apart, and its legend explains them."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from skipnets.insight.panels import INPUT_COLOR, SHORTCUT_COLORS, draw_legend, source_colors


@pytest.mark.parametrize("layers", [1, 2, 6, 64])
def test_every_layer_has_a_color_of_its_own_on_white(layers: int) -> None:
    colors = source_colors(layers)
    assert len(colors) == len(set(colors)) == layers + 1
    assert colors[0] == to_rgba(INPUT_COLOR)
    # The yellow end of the color map would not be seen.
    luminance = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue, _ in colors]
    assert max(luminance) < 0.8


def test_the_legend_has_a_line_in_the_color_of_each_shortcut() -> None:
    axes = Figure().add_subplot()
    draw_legend(axes, 0, 0, ["dense", *SHORTCUT_COLORS])
    assert [to_rgba(line.get_color()) for line in axes.lines] == [
        to_rgba(color) for color in SHORTCUT_COLORS.values()
    ]
    assert len({line.get_linestyle() + str(line._dash_pattern) for line in axes.lines}) == len(
        SHORTCUT_COLORS
    )
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == len(set(texts)) == 1 + len(SHORTCUT_COLORS)
    assert [tuple(patch.get_facecolor()) for patch in axes.patches] == source_colors(6)
