"""Drawings: every connection is there once, in its color, and nothing runs over the edge."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from skipnets.errors import UserError
from skipnets.insight import diagram, draw_diagram
from skipnets.insight.panels import SHORTCUT_COLORS, source_colors


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """What is drawn while a test runs."""
    drawn: list[Figure] = []
    draw = diagram._figure
    monkeypatch.setattr(diagram, "_figure", lambda drawings: drawn.append(draw(drawings)) or drawn[-1])
    return drawn


def _arcs(figure: Figure) -> list[PathCollection]:
    return [item for item in figure.axes[0].collections if isinstance(item, PathCollection)]


@pytest.mark.parametrize("layers", [1, 6, 24])
def test_a_block_of_l_layers_has_every_arc_in_the_color_of_its_source(tmp_path, figures, layers: int) -> None:
    draw_diagram("densenet_bc40_k12", output=tmp_path / "a.svg", block_config=(layers,))
    (arcs,) = _arcs(figures[0])
    assert len(arcs.get_paths()) == layers * (layers + 1) // 2
    ends = {(path.vertices[0][0], path.vertices[-1][0]) for path in arcs.get_paths()}
    assert len(ends) == layers * (layers + 1) // 2
    starts = sorted({start for start, _ in ends})
    colors = source_colors(layers)
    for path, color in zip(arcs.get_paths(), arcs.get_edgecolor(), strict=True):
        assert tuple(color) == pytest.approx(colors[starts.index(path.vertices[0][0])])


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    [
        ("resnet18", {"identity": 5, "projection": 3}),
        ("resnet50", {"identity": 12, "projection": 4}),
        ("resnet20", {"identity": 7, "pad": 2}),
    ],
)
def test_shortcuts_are_distinguished(tmp_path, figures, name: str, shortcuts: dict[str, int]) -> None:
    draw_diagram(name, output=tmp_path / "a.svg")
    lines = [(item.get_edgecolor()[0], item.get_linestyle()[0]) for item in _arcs(figures[0])]
    for kind, count in shortcuts.items():
        color = diagram.mpl.colors.to_rgba(SHORTCUT_COLORS[kind])
        own = [style for edge, style in lines if tuple(edge) == pytest.approx(color)]
        assert len(own) == count
        assert all((style[1] is None) == (kind == "identity") for style in own)
    assert len(lines) == sum(shortcuts.values())


def _height_of(figure: Figure, text: str) -> float:
    return next(item.get_position()[1] for item in figure.axes[0].texts if item.get_text() == text)


def test_stages_of_equal_size_are_level_and_other_sizes_leave_no_gap(tmp_path, figures) -> None:
    draw_diagram(["resnet34", "densenet121"], output=tmp_path / "a.png")
    for number in (1, 2, 3, 4):
        # A transition, which is 0.48 high with its gap, stands above the dense block of its size.
        above = 0.48 if number > 1 else 0
        stage, block = (_height_of(figures[0], f"{kind} {number}") for kind in ("stage", "dense block"))
        assert stage - block == pytest.approx(above)
    heads = {item.get_position()[1] for item in figures[0].axes[0].texts if item.get_text() == "head"}
    assert len(heads) == 1
    draw_diagram("resnet20", output=tmp_path / "a.png")
    draw_diagram(["resnet20", "densenet121"], output=tmp_path / "a.png")
    alone, beside = (_height_of(figure, "stage 1") - _height_of(figure, "head") for figure in figures[1:])
    assert beside == pytest.approx(alone, rel=0.1)  # no map size in common, so nothing to align


def _sources() -> list[object]:
    return ["densenet121", "resnet152", "resnet110", ["resnet34", "densenet121"]]


@pytest.mark.parametrize("sources", _sources(), ids=str)
def test_text_stays_on_the_paper_and_off_other_text(tmp_path, figures, sources) -> None:
    draw_diagram(sources, output=tmp_path / "a.png")
    figure = figures[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    paper = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.axes[0].texts]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= paper.x1, text
        assert box.y0 >= 0, text
        assert box.y1 <= paper.y1, text
    for place, (text, box) in enumerate(boxes):
        for other, there in boxes[place + 1 :]:
            # The line spacing of the font is part of a box: a touch is not an overlap.
            wide = min(box.x1, there.x1) - max(box.x0, there.x0)
            high = min(box.y1, there.y1) - max(box.y0, there.y0)
            assert wide <= 1 or high <= 0.35 * min(box.height, there.height), (text, other)


def test_formats(tmp_path) -> None:
    for suffix in (".svg", ".png", ".pdf"):
        draw_diagram("resnet20", output=tmp_path / f"a{suffix}", block=1)
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    again = tmp_path / "b.svg"
    draw_diagram("resnet20", output=again, block=1)
    assert again.read_text() == (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("sources", "output", "options", "message"),
    [
        ("resnet20", "a.gif", {}, r"must end in \.svg, \.png, \.pdf"),
        ("resnet20", "a.svg", {"block": 4}, "block=4: must be from 1 to 3 for resnet20"),
        ("resnet21", "a.svg", {}, r"did you mean .*resnet20"),
        ([], "a.svg", {}, "sources: must name at least one"),
    ],
)
def test_wrong_input(tmp_path, sources, output: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_diagram(sources, output=tmp_path / output, **options)
    assert not list(tmp_path.iterdir())
