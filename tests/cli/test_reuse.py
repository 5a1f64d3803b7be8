"""`skipnets reuse`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from skipnets.classifier import load

FAMILIES = ("densenet", "resnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_is_drawn_with_its_numbers(family: str, runs: dict[str, Path], tmp_path: Path, run) -> None:
    assert run("reuse", runs[family], "--output", tmp_path / "r.png").status == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = "share" if family == "resnet" else "relative"
    assert len(rows) == (2 if family == "resnet" else 2 * 3)
    assert all(0 <= float(row[column]) <= 1 for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", [True, False])
def test_labels_are_not_replaced_by_the_plot_s_data(
    family: str,
    named: bool,
    runs: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos.csv").write_text(f"path,label\n{photos}/dark/00.png,dark\n")
    before = Path("photos.csv").read_text()
    # Where no data are named, they are what the model was trained on.
    classifier = load(runs[family])
    classifier.provenance = {**classifier.provenance, "data": str(tmp_path / "photos.csv")}
    classifier.save("run/model.safetensors")
    shutil.copy(runs[family] / "splits.csv", "run")
    result = run("reuse", "run", *(["photos.csv"] if named else []), "--output", "photos.png")
    assert (result.status, result.out) == (2, "")
    assert result.err == "skipnets: photos.csv: is what this command reads; write to another file\n"
    assert Path("photos.csv").read_text() == before
    assert not Path("photos.png").exists()
    assert run("reuse", "run", "photos.csv", "--output", "r.png").status == 0


def test_images_are_not_replaced_by_the_plot(
    runs: dict[str, Path], photos: Path, tmp_path: Path, run
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    image = tmp_path / "photos" / "dark" / "03.png"
    before = image.read_bytes()
    result = run("reuse", runs["resnet"], tmp_path / "photos", "--images", 2, "--output", image)
    assert (result.status, result.out) == (2, "")
    assert "03.png: is what this command reads; write to another file" in result.err
    assert image.read_bytes() == before
    assert not image.with_suffix(".csv").exists()
