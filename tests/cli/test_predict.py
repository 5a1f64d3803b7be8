"""`skipnets predict`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.helpers.disks import TARGETS

import skipnets
from skipnets.tables import number_text
from skipnets.training import Run


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_as_a_file_keep_the_order_of_the_input(
    suffix: str, trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    paths = [photos / "dark/03.png", photos / "bright side/01.png", photos / "dark/00.png"]
    output = tmp_path / f"out.{suffix}"
    result = run("predict", trained, *paths, "--output", output, "--top-k", 2)
    assert (result.status, result.out) == (0, f"{output}\n")
    if suffix == "csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        rows = pq.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    expected = skipnets.load(trained).predict(paths, top_k=2)
    assert [row["label_2"] for row in rows] == [prediction.ranking[1][0] for prediction in expected]
    assert [float(row["probability"]) for row in rows] == pytest.approx([p.probability for p in expected])


def test_folders_patterns_and_standard_input_are_expanded(
    trained: Path, photos: Path, run, monkeypatch
) -> None:
    def predicted(*words: object) -> list[str]:
        return [line.split("\t")[0] for line in run("predict", trained, *words).out.splitlines()]

    dark = sorted(map(str, (photos / "dark").iterdir()))
    assert predicted(photos / "dark") == dark
    assert predicted(photos / "dark/0*.png") == dark[:10]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(dark[:3]) + "\n"))
    assert predicted("-", photos / "bright side/05.png") == [*dark[:3], str(photos / "bright side/05.png")]


def test_half_precision_is_asked_for_by_name(trained: Path, photos: Path, run) -> None:
    exact, half = (
        json.loads(run("predict", trained, photos / "dark", "--json", "--precision", name).out)["predictions"]
        for name in ("32-true", "bf16-mixed")
    )
    assert [row["label"] for row in half] == [row["label"] for row in exact]
    probabilities = [[row["probability"] for row in rows] for rows in (half, exact)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=0.05)
    assert probabilities[0] != probabilities[1]
    result = run("predict", trained, photos / "dark", "--precision", "16-mixed", "--device", "cpu")
    assert result.status == 2
    assert "precision=16-mixed: needs a GPU" in result.err


def test_an_image_that_fails_is_listed_and_stops_nothing(
    trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    result = run("predict", trained, tmp_path / "broken.jpg", photos / "dark/00.png")
    assert result.status == 1
    assert result.out.splitlines()[0].split("\t") == [str(tmp_path / "broken.jpg"), "failed"]
    assert result.out.splitlines()[1].startswith(f"{photos / 'dark/00.png'}\t")
    assert "1 of 2 images failed" in result.err
    assert "broken.jpg" in result.err


def test_json_names_the_predictions_and_what_was_written(
    trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    words = ("predict", trained, photos / "dark/00.png", "--json")
    found = json.loads(run(*words, "--output", tmp_path / "p.csv").out)
    assert found["written"] == [str(tmp_path / "p.csv")]
    assert [each["source"] for each in found["predictions"]] == [str(photos / "dark/00.png")]
    assert json.loads(run(*words).out) == {**found, "written": []}


def test_a_folder_as_output_is_filled_and_gone_on_with(
    trained: Path, photos: Path, tmp_path: Path, run
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    out = tmp_path / "out"
    first = run("predict", trained, photos, tmp_path / "broken.jpg", "--output", out, "--shard", "1/2")
    assert first.out.splitlines() == [str(path) for path in sorted(out.glob("*.parquet"))]
    assert " images, " in first.err
    assert " failed" in first.err
    other = run("predict", trained, photos, tmp_path / "broken.jpg", "--output", out, "--shard", "2/2")
    assert sorted([first.status, other.status]) == [0, 1]
    assert "broken.jpg" in first.err + other.err
    paths = [path for file in out.glob("*.parquet") for path in pq.read_table(file)["path"].to_pylist()]
    assert sorted(paths) == sorted([str(tmp_path / "broken.jpg"), *map(str, photos.rglob("*.png"))])
    again = run("predict", trained, photos, "--output", out, "--shard", "1/2", "--json")
    assert json.loads(again.out) == {"rows": 0, "failed": 0, "skipped": 0, "written": []}


def test_a_folder_without_images_is_told_of(trained: Path, tmp_path: Path, run) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/photo").write_bytes(b"without an ending")
    result = run("predict", trained, tmp_path / "in", "--output", tmp_path / "out")
    assert result.status == 1
    assert "there are no images" in result.err


def test_options_of_folders_need_one(trained: Path, photos: Path, tmp_path: Path, run) -> None:
    for words, said in (
        (["--shard", "1/2"], "--shard=1/2: needs --output with a folder"),
        (["--engine", "ray", "--output", tmp_path / "a.csv"], "--engine=ray: needs --output with a folder"),
        (["--page", "2", "--output", tmp_path / "out"], "--page=2: must not be given with a folder"),
        (["--shard", "3/2", "--output", tmp_path / "out"], "--shard=3/2: must be like 3/16"),
        (["--engine", "ray", "--shard", "1/2", "--output", tmp_path / "out"], "--shard=1/2: --engine=ray"),
    ):
        result = run("predict", trained, photos, *words)
        assert (result.status, result.out) == (2, "")
        assert said in result.err


def test_a_page_and_a_limit_hold_for_every_image(trained: Path, photos: Path, tmp_path: Path, run) -> None:
    bright, dark = (Image.open(photos / f"{name}/00.png") for name in ("bright side", "dark"))
    dark.save(tmp_path / "two.tif", save_all=True, append_images=[bright])
    first, second = (run("predict", trained, tmp_path / "two.tif", "--page", page) for page in (1, 2))
    assert [result.out.split("\t")[1] for result in (first, second)] == ["dark", "bright side"]
    assert second.out.startswith(f"{tmp_path / 'two.tif'}, page 2\t")
    refused = run("predict", trained, photos / "dark/00.png", "--max-pixels", 3)
    assert refused.status == 1
    assert "00.png: larger than 3 pixels, the most that is read" in refused.err


def test_numbers_are_printed_with_the_names_of_their_targets(number_run: Run, tmp_path: Path, run) -> None:
    image, table = Path(number_run.config.data).with_name("000.png"), Path(number_run.config.data)
    [expected] = skipnets.load(number_run).predict(image)
    numbers = dict(expected.values)
    result = run("predict", number_run.folder, image, table)
    assert result.status == 1
    words = [text for name in TARGETS for text in (name, number_text(numbers[name]))]
    assert result.out.splitlines() == ["\t".join([str(image), *words]), f"{table}\tfailed"]
    assert run("predict", number_run.folder, image, "--output", tmp_path / "out.csv").status == 0
    [row] = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert {name: float(row[name]) for name in TARGETS} == pytest.approx(numbers)
    told = json.loads(run("predict", number_run.folder, image, "--json").out)
    assert dict(told["predictions"][0]["values"]) == pytest.approx(numbers)
    refused = run("predict", number_run.folder, image, "--coverage", "0.9")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "needs a calibrated model" in refused.err


def test_numbers_are_printed_with_their_intervals(number_run: Run, tmp_path: Path, run) -> None:
    shutil.copytree(number_run.folder, tmp_path / "run")
    calibrated = run("calibrate", tmp_path / "run", "--workers", "1")
    assert calibrated.status == 0
    assert "prediction intervals" in calibrated.out
    image = Path(number_run.config.data).with_name("000.png")
    [expected] = skipnets.load(tmp_path / "run").predict(image, coverage=0.8, reject=0.1)
    limits = {name: ends for name, *ends in expected.intervals}
    result = run("predict", tmp_path / "run", image, "--coverage", "0.8", "--reject", "0.1")
    numbers = dict(expected.values)
    words = [text for name in TARGETS for text in (name, *map(number_text, (numbers[name], *limits[name])))]
    verdict = f"{'rejected' if expected.rejected else 'accepted'} (p={expected.p_value:.4f})"
    assert result.out.rstrip("\n") == "\t".join([str(image), *words, verdict])
    out = tmp_path / "out.csv"
    assert run("predict", tmp_path / "run", image, "--coverage", "0.8", "--output", out).status == 0
    [row] = csv.DictReader(out.read_text().splitlines())
    for name in TARGETS:
        assert [float(row[f"{end}:{name}"]) for end in ("low", "high")] == pytest.approx(limits[name])
    told = json.loads(run("predict", tmp_path / "run", image, "--coverage", "0.8", "--json").out)
    assert told["predictions"][0]["intervals"][0] == [TARGETS[0], *map(pytest.approx, limits[TARGETS[0]])]
