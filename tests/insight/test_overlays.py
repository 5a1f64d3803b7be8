"""Overlays and contact sheets: where images land, and what the files hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipnets.errors import UserError
from skipnets.insight import Explanation, contact_sheet, overlay
from skipnets.insight.overlays import save_explanations
from skipnets.models.accounting import Grid


def _explanation(source: str = "a.png", label: str = "cat", size: tuple[int, int] = (60, 40)) -> Explanation:
    """All evidence for the class is in the top left quarter of a black image."""
    grid = np.zeros((8, 8), np.float32)
    grid[:4, :4] = 1
    grid[6:, 6:] = -5
    return Explanation(
        source=source, label=label, probability=0.5, method="gradcam", stage="layer1",
        image=Image.new("RGB", size), grid=grid, positions=(Grid(step=4, start=1.5),) * 2, box=(0, 0, *size),
        input_size=(32, 32),
    )  # fmt: skip


def test_an_overlay_has_the_image_s_size_and_its_color_where_the_map_is_positive() -> None:
    pixels = np.asarray(overlay(_explanation()), np.int64)
    assert pixels.shape == (40, 60, 3)
    colored = np.ptp(pixels, axis=2) > 40
    assert colored[:18, :27].all()
    assert not colored[24:].any()
    assert not colored[:, 36:].any()


def test_a_map_without_anything_positive_leaves_the_image_gray() -> None:
    explanation = _explanation()
    explanation.grid[:] = -1
    assert np.ptp(np.asarray(overlay(explanation)), axis=2).max() == 0


@pytest.mark.parametrize(("images", "classes"), [(1, 1), (2, 3), (7, 1), (40, 1), (40, 2)])
def test_a_sheet_shows_every_image_and_is_about_square(images: int, classes: int) -> None:
    size = (256, 256)  # a cell's, so that nothing is scaled
    rows = [[_explanation(label=str(number), size=size) for number in range(classes)]] * images
    sheet = contact_sheet(rows)
    drawn = np.asarray(overlay(rows[0][0]))
    pixels = np.asarray(sheet)
    # A cell begins where the overlay's first row of pixels is found.
    found = sum(
        bool((pixels[y : y + 256, x : x + 256] == drawn).all())
        for y in range(14, pixels.shape[0] - 256, 310)
        for x in range(pixels.shape[1] - 256)
        if (pixels[y, x : x + 256] == drawn[0]).all()
    )
    assert found == images * classes
    if images >= 7:
        assert 0.5 < sheet.width / sheet.height < 2


def test_the_color_bar_shows_the_overlay_s_colors() -> None:
    explanation = _explanation(size=(256, 256))
    explanation.image.paste((178, 178, 178), (0, 0, 256, 256))  # the gray of the bar: 0.7
    sheet = np.asarray(contact_sheet([[explanation]]), np.int64)
    bar = sheet[-44 + 7, 14 : 14 + 256]
    strongest = np.asarray(overlay(explanation), np.int64)[60, 60]
    weakest = np.asarray(overlay(explanation), np.int64)[200, 200]
    assert np.abs(bar[-1] - strongest).max() <= 2
    assert np.abs(bar[0] - weakest).max() <= 2


def test_files_are_written_image_by_image_under_names_that_are_safe(tmp_path: Path) -> None:
    names = ["../../etc/passwd.png", "b/c d.png", "[3]"]
    written = []

    def explained() -> Iterator[list[Explanation]]:
        for name in names:
            yield [_explanation(name, "cat/../dog"), _explanation(name, "2")]
            written.append(len(list((tmp_path / "seen").glob("*.npy"))))

    sheet, folder = save_explanations(explained(), tmp_path / "seen.png")
    assert written == [2, 4, 6]
    assert (sheet, folder) == (tmp_path / "seen.png", tmp_path / "seen")
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "001-passwd-2.png", "001-passwd-cat_.._dog.png", "002-c_d-2.png", "002-c_d-cat_.._dog.png",
        "003-_3_-2.png", "003-_3_-cat_.._dog.png",
    ]  # fmt: skip
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {sheet, *folder.iterdir()}
    np.testing.assert_array_equal(np.load(folder / "001-passwd-2.npy"), _explanation().map())
    with Image.open(folder / "001-passwd-2.png") as image:
        assert image.size == (60, 40)


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images: must name at least one"):
        contact_sheet([])
    with pytest.raises(UserError, match="images: must name at least one"):
        save_explanations(iter(()), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
