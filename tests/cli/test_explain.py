"""`skipnets explain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FAMILIES = ("densenet", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["gradcam", "integrated-gradients", "occlusion"])
def test_images_are_explained(
    family: str, method: str, runs: dict[str, Path], photos: Path, tmp_path: Path, run
) -> None:
    words = (photos / "dark/00.png", photos / "bright side/0[12].png", "--method", method)
    classes = ("--classes", "dark", "--classes", "bright side")
    assert run("explain", runs[family], *words, *classes, "--output", tmp_path / "seen.png").status == 0
    with Image.open(tmp_path / "seen.png") as sheet:
        assert sheet.width > 3 * 256
    maps = [np.load(path) for path in sorted((tmp_path / "seen").glob("*.npy"))]
    assert [found.shape for found in maps] == [(16, 16)] * 6
    assert all(np.ptp(found) > 0 for found in maps)
    assert len(list((tmp_path / "seen").glob("*.png"))) == 6


def test_an_image_that_fails_is_listed_and_the_rest_explained(
    trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    words = (photos / "dark/00.png", tmp_path / "broken.jpg", photos / "dark/01.png")
    result = run("explain", trained, *words, "--output", tmp_path / "seen.png")
    assert result.status == 1
    assert result.out.splitlines() == [str(tmp_path / "seen.png"), str(tmp_path / "seen")]
    assert result.err.startswith("1 of 3 images failed:\n")
    assert "broken.jpg" in result.err
    assert len(list((tmp_path / "seen").glob("*.npy"))) == 2
