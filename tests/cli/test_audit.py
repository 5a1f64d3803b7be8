"""`skipnets audit` writes a page, a table and a manifest, prints counts, and changes nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Result
from tests.helpers.flawed import FOUND, scene, write_flawed, write_predictions
from tests.helpers.runs import write_images

Run = Callable[..., Result]


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_flawed(tmp_path / "pets")
    write_predictions(tmp_path / "pets", tmp_path / "predictions.csv")
    monkeypatch.chdir(tmp_path)
    return Path("pets")


def test_files_and_table(pets: Path, run: Run) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in pets.rglob("*"))
    result = run("audit", pets, "predictions.csv", "--write", "clean.csv", "--drop", "blank")
    assert result.status == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[-3:] == ["audit-pets.html", "audit-pets.csv", "clean.csv"]
    assert "Near copies 1 kept together" in lines
    assert "labels 94.9% of 59 as predicted by predictions.csv" in lines
    assert Path("audit-pets.html").read_text().startswith("<!doctype html>")
    with Path("audit-pets.csv").open(newline="") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert {kind: kinds.count(kind) for kind in FOUND} == {kind: len(names) for kind, names in FOUND.items()}
    assert "blank.png" not in Path("clean.csv").read_text()
    assert sorted((path, path.stat().st_mtime_ns) for path in pets.rglob("*")) == before


def test_json_and_output(pets: Path, run: Run, tmp_path: Path) -> None:
    result = run("audit", pets, "--output", tmp_path / "reports" / "pets.html", "--json")
    found = json.loads(result.out)
    assert found["findings"]["unreadable"] == 1
    assert found["label_check"] is None
    assert found["written"] == [str(tmp_path / "reports" / f"pets.{suffix}") for suffix in ("html", "csv")]
    assert all(Path(path).is_file() for path in found["written"])
    assert not list(Path().glob("audit*"))


def test_the_manifest_is_read_as_it_is(pets: Path, run: Run) -> None:
    assert run("audit", pets, "predictions.csv", "--write", "clean.csv").status == 0
    told = json.loads(run("data", "clean.csv", "--json").out)
    assert told["columns"] == {
        "path": "path",
        "label": "label",
        "split": "split",
        "split_group": "group",
        "given_label": "",
        "reason": "",
    }
    assert told["splits"]["test"] == 20
    assert told["unreadable"] == {}


@pytest.mark.slow
def test_training_starts_from_the_manifest(pets: Path, run: Run) -> None:
    assert run("audit", pets, "predictions.csv", "--write", "clean.csv").status == 0
    result = run(
        *("train", "clean.csv", "--out", "run", "--model", "resnet20", "--epochs", 1, "--batch-size", 16),
        *("--size", 16, "--workers", 0, "--accelerator", "cpu", "--model-options.width", 4),
    )
    assert result.status == 0, result.err
    assert Path("run/model.safetensors").is_file()


@pytest.mark.slow
def test_a_run_in_folds_judges_every_label(tmp_path: Path, run: Run) -> None:
    data = write_images(tmp_path / "data", ("cat", "dog"), 12)
    result = run(
        *("train", data, "--folds", 2, "--out", tmp_path / "run", "--model", "resnet20", "--epochs", 1),
        *("--batch-size", 8, "--size", 16, "--workers", 0, "--accelerator", "cpu"),
    )
    assert result.status in (0, 1), result.err
    found = json.loads(run("audit", data, tmp_path / "run", "--output", tmp_path / "a.html", "--json").out)
    assert found["label_check"]["trained_on"] == 0
    assert found["label_check"]["images"] == found["images"] - found["findings"]["unreadable"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "audit.pdf"), "--output=audit.pdf: must end in .html"),
        (
            ("--write", "audit-pets.csv"),
            "--write=audit-pets.csv: is where the table of findings goes; take another name",
        ),
        (
            ("predictions.csv", "--output", "predictions.html"),
            "--output=predictions.html: the table of findings would replace predictions.csv",
        ),
        (("--write", "clean.parquet"), "--write=clean.parquet: must end in .csv"),
        (("--write", "clean.csv", "--drop", "dusk"), "--drop=dusk: must be one of "),
        (("--drop", "dark"), "--drop: is for the manifest that --write names"),
        (("nothing.csv",), "nothing.csv: cannot be read as a table of predictions"),
        (("nothing",), "nothing"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_written(
    pets: Path, run: Run, words: tuple[str, ...], message: str
) -> None:
    result = run("audit", pets, *words)
    assert result.status == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(Path().glob("audit*")) + list(Path().glob("clean.*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits",), "digits does not lie in files, which a manifest could list"),
        (("pages", "--page", "all"), "a manifest lists files, not their pages; leave out --page all"),
    ],
)
def test_what_no_manifest_can_list_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages/a").mkdir(parents=True)
    scene(0).save("pages/a/0.tif", save_all=True, append_images=[scene(1)])
    monkeypatch.setattr("skipnets.report.auditing.survey", lambda *_: pytest.fail("the work began"))
    result = run("audit", *words, "--write", "clean.csv")
    assert result.status == 2
    assert result.err.splitlines() == [f"skipnets: --write=clean.csv: {message}"]
