"""`skipnets explain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.helpers.commands import write_image

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


@pytest.mark.parametrize(
    ("words", "output", "reason"),
    [
        (["run", "photos"], "photos.png", "the folder photos, which"),
        (["run", "photos/*/a.png"], "photos.png", "the folder photos, which"),
        (["run", "b.png", "photos/dark/a.png"], "./photos.png", "the folder photos, which"),
        (["run", "b.png"], "run.png", "the folder run, which"),
        (["run", "photos"], "photos/dark/a.png", "a.png: is what this command reads"),
        (["run", "b.png"], "b.png", "b.png: is what this command reads"),
        (["run", "b.png"], "file.png", "file is not a folder"),
    ],
)
def test_nothing_is_written_over_what_is_read_nor_among_it(
    words: list[str],
    output: str,
    reason: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(trained)
    for name in ("photos/dark/a.png", "b.png"):
        write_image(Path(name), 10)
    Path("file").touch()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run("explain", *words, "--output", output)
    assert (result.status, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
