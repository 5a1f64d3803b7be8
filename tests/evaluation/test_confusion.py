"""Drawings of the confusion matrix: their content, and that any size can be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipnets.evaluation.confusion import draw_confusion, save_figure, tints


def test_the_drawing_shows_the_matrix() -> None:
    figure = draw_confusion(
        np.array([[1234, 0, 1], [5, 7, 0], [0, 0, 0]]), ["ant", "$bee$", "c" * 40], title="pets", note="fine"
    )
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    counts = [text for text in axes.texts if text.get_text().replace(",", "").isdigit()]
    cells = {text.get_position(): text.get_text() for text in counts}
    assert cells == {(0, 0): "1,234", (2, 0): "1", (0, 1): "5", (1, 1): "7"}
    assert {"pets", "fine", "recall", "precision"} <= set(texts)
    # recall 1234/1235, 7/12, none; precision 1234/1239, 7/7, 0/1
    edges = [text for text in texts if "%" in text or text == "–"]
    assert edges == ["100%", "100%", "58%", "100%", "–", "0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "$bee$", "c" * 23 + "…"]


def test_colors_distinguish_correct_wrong_and_empty_cells() -> None:
    confusion = np.array([[9999, 1, 0], [50, 50, 0], [0, 0, 0]])
    (image,) = draw_confusion(confusion, ["a", "b", "c"]).axes[0].images
    colors = np.asarray(image.get_array())
    red, blue = colors[..., 0], colors[..., 2]
    assert (blue[[0, 1], [0, 1]] > red[[0, 1], [0, 1]]).all()
    assert (red[[0, 1], [1, 0]] > blue[[0, 1], [1, 0]]).all()
    assert red[0, 0] < red[1, 1]  # deeper with a larger share
    assert (colors[0, 2] == 1).all()  # none: white
    assert colors[0, 1].min() < 0.95  # one among ten thousand: not white
    assert (colors[2] == colors[2, 0]).all()  # no images of this class: one gray
    assert 0.8 < colors[2, 0, 0] < 1


def test_tints_are_proportional_to_the_share_of_the_row() -> None:
    confusion = np.array([[919, 1, 20, 60], [0, 1000, 0, 0], [0, 0, 500, 500], [0, 0, 0, 0]])
    depth, deepest = tints(confusion)
    assert deepest == 0.5
    assert (depth > 0).tolist() == (confusion > 0).tolist()
    # The same distance for the same share, within mistakes and within correct predictions.
    assert (depth[0, 3] - depth[0, 2]) / (depth[0, 2] - depth[0, 1]) == pytest.approx(40 / 19)
    assert depth[2, 3] == depth[1, 1] == 1
    assert (depth[1, 1] - depth[0, 0]) / (depth[1, 1] - depth[2, 2]) == pytest.approx(81 / 500)
    assert tints(np.array([[999, 1], [0, 1000]]))[1] == 0.1  # one rare mistake is not the deepest


@pytest.mark.parametrize("classes", [2, 40, 160])
def test_any_size_can_be_drawn(classes: int, tmp_path: Path) -> None:
    names = [f"名前 class {index}" for index in range(classes)]
    confusion = np.random.default_rng(0).integers(0, 9, (classes, classes))
    save_figure(draw_confusion(confusion, names), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 480
        assert max(image.size) < 4000
    assert list(tmp_path.iterdir()) == [tmp_path / "c.png"]
