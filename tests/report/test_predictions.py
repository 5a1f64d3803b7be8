"""Predictions are joined to the images that they are of, and none of a trained-on image counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tests.helpers.flawed import scene
from tests.helpers.runs import make_run, write_images

from skipnets.classifier import load
from skipnets.data.contents import contents
from skipnets.data.dataset import ImageDataset
from skipnets.data.sources import find_dataset
from skipnets.data.splits import read_splits
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.evaluation.tables import write_table
from skipnets.report.predictions import UnseenPredictions, predict_unseen, read_prediction_table
from skipnets.training.run import Run


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for seed in range(3):
            scene(seed).save(tmp_path / "pets" / label / f"{seed}.png")
    return find_dataset(tmp_path / "pets", fractions=None)


def test_a_table_in_any_order_and_format(dataset: ImageDataset, tmp_path: Path) -> None:
    rows = {name: index / 10 for index, name in enumerate(dataset.names)}
    shuffled = sorted(rows, reverse=True)[1:]
    columns = {
        "p:dog": [1 - rows[n] for n in shuffled],
        "path": shuffled,
        "p:cat": [rows[n] for n in shuffled],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    lines = [f"{path},{dog},{cat}" for dog, path, cat in zip(*columns.values(), strict=True)]
    (tmp_path / "p.csv").write_text("\n".join(["path,dog,cat", *lines, ""]))
    with (tmp_path / "p.jsonl").open("w") as file:
        for values in zip(*columns.values(), strict=True):
            file.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")
    absolute = {**columns, "path": [str(dataset.root / name) for name in shuffled]}
    pyarrow.parquet.write_table(pyarrow.table(absolute), tmp_path / "absolute.parquet")
    for name in ("p.parquet", "p.csv", "p.jsonl", "absolute.parquet"):
        read = read_prediction_table(tmp_path / name, dataset)
        assert read.classes == ("dog", "cat")
        assert read.images.tolist() == [0, 1, 2, 3, 4]
        assert read.probabilities[:, 1] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_names_that_a_spreadsheet_would_take_for_formulas(tmp_path: Path) -> None:
    for label in ("=sum", "@home"):
        (tmp_path / label).mkdir()
        scene(0).save(tmp_path / label / "0.png")
    dataset = find_dataset(tmp_path, fractions=None)
    write_table(tmp_path / "p.csv", {"path": dataset.names, "p:=sum": [0.2, 0.4], "p:@home": [0.8, 0.6]})
    read = read_prediction_table(tmp_path / "p.csv", dataset)
    assert read.classes == ("=sum", "@home")
    assert read.images.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,cat,dog\nelsewhere.png,0.5,0.5\n",
            r"predicts none of the images; its paths are such as elsewhere",
        ),
        (
            "path,cat\ncat/0.png,1\n",
            r"must have a column path and one for each class, such as p:cat; it has path",
        ),
        ("path,cat,dog\ncat/0.png,3,-2\n", r"the probabilities of cat/0\.png must sum to 1"),
        ("path,cat,dog\ncat/0.png,0.2,0.2\n", r"the probabilities of cat/0\.png must sum to 1"),
        ("path,cat,dog\ncat/0.png,,0.2\n", r"the probabilities of cat/0\.png must sum to 1"),
        ("path,cat,dog\ncat/0.png,x,0.2\n", r"probabilities must be numbers"),
        ("path,cat,dog\ncat/0.png,0.5,0.5\ncat/0.png,0.5,0.5\n", r"lists an image twice"),
        (
            "path,p:cow,p:hen\ncat/0.png,0.5,0.5\n",
            r"p\.csv: cannot judge these images: it knows none of their classes \(its classes: cow, hen\)",
        ),
        ("path,cat,dog,cat\ncat/0.png,0.5,0.5,0.5\n", r"p\.csv: has 2 columns cat, not one"),
        ("path,path,cat,dog\ncat/0.png,x,0.5,0.5\n", r"p\.csv: has 2 columns path, not one"),
        ("", r"cannot be read as a table of predictions"),
    ],
)
def test_other_tables_are_refused_in_one_line(
    dataset: ImageDataset, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_prediction_table(tmp_path / "p.csv", dataset)


def test_one_image_under_two_names_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    rows = ["path,cat,dog", f"{dataset.root}/cat/1.png,1,0", "cat/0.png,1,0", "cat/1.png,1,0", ""]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"p\.csv: lists an image twice: cat/1\.png"):
        read_prediction_table(tmp_path / "p.csv", dataset)


def test_a_class_may_be_called_path(tmp_path: Path) -> None:
    for seed, label in enumerate(("meadow", "path", "wall")):
        (tmp_path / label).mkdir()
        scene(seed).save(tmp_path / label / "0.png")
    dataset = find_dataset(tmp_path, fractions=None)
    rows = ["path,meadow,wall", *(f"{name},0.9,0.1" for name in dataset.names), ""]
    (tmp_path / "plain.csv").write_text("\n".join(rows))
    assert read_prediction_table(tmp_path / "plain.csv", dataset).classes == ("meadow", "wall")
    rows = ["path,p:meadow,p:path,p:wall", *(f"{name},0.2,0.7,0.1" for name in dataset.names), ""]
    (tmp_path / "prefixed.csv").write_text("\n".join(rows))
    assert read_prediction_table(tmp_path / "prefixed.csv", dataset).classes == ("meadow", "path", "wall")


def unseen(run: object, dataset: ImageDataset) -> UnseenPredictions:
    return predict_unseen(
        run,  # type: ignore[arg-type]
        dataset,
        batch_size=8,
        workers=1,
        runtime="torch",
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("run")
    data = write_images(folder / "data", ("cat", "dog"), 10)
    return make_run(folder / "run", data), data


def with_contents(data: Path) -> ImageDataset:
    import dataclasses

    dataset = find_dataset(data, fractions=None)
    return dataclasses.replace(dataset, contents=contents(dataset))


def test_a_run_is_asked_about_images_that_it_did_not_learn_from(run: tuple[Run, Path]) -> None:
    made, data = run
    dataset = with_contents(data)
    split_of = {name: split for name, (_, split) in read_splits(made.splits).items()}
    found = unseen(made.folder, dataset)
    names = [dataset.names[image] for image in found.images]
    evaluated = evaluate(made.folder, dataset, split="all", workers=1)
    readable = set(evaluated.names)
    assert set(names) == {name for name, split in split_of.items() if split != "train"} & readable
    assert found.trained_on == sum(split == "train" for split in split_of.values())
    for name, probabilities in zip(names, found.probabilities, strict=True):
        expected = evaluated.probabilities[evaluated.names.index(name)]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_stored_predictions_are_taken_as_they_are(run: tuple[Run, Path], tmp_path: Path) -> None:
    """As of a run in folds, whose predictions are of all images, out of fold."""
    made, data = run
    folder = shutil.copytree(made.folder, tmp_path / "run")
    dataset = with_contents(data)
    stored = np.linspace(0, 1, len(dataset))
    table = {"path": dataset.names, "p:cat": stored, "p:dog": 1 - stored}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "predictions.parquet")
    found = unseen(folder, dataset)
    assert found.trained_on == 0
    assert found.probabilities[:, 0] == pytest.approx(stored[found.images])
    # Moved and renamed, images are known by content.
    moved = tmp_path / "moved"
    for image in found.images[:4].tolist():
        target = moved / dataset.classes[dataset.labels[image]] / f"renamed {image}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset.file(image), target)
    again = with_contents(moved)
    order = [int(name.rpartition(" ")[2].removesuffix(".png")) for name in again.names]
    assert unseen(folder, again).probabilities[:, 0] == pytest.approx(stored[order])


def test_images_that_are_all_trained_on_cannot_be_judged(run: tuple[Run, Path], tmp_path: Path) -> None:
    made, data = run
    dataset = with_contents(data)
    trained = {name for name, (_, split) in read_splits(made.splits).items() if split == "train"}
    positions = np.array([index for index, name in enumerate(dataset.names) if name in trained])
    with pytest.raises(
        UserError, match=r"it was trained on all of them; out-of-fold predictions: .*--folds 5"
    ):
        unseen(made.folder, dataset.select(positions))
    others = tmp_path / "others"
    (others / "cow").mkdir(parents=True)
    scene(0).save(others / "cow" / "0.png")
    with pytest.raises(UserError, match=r"it knows none of their classes \(its classes: cat, dog\)"):
        unseen(made.folder, with_contents(others))


def test_a_classifier_without_a_run_is_asked_about_all(run: tuple[Run, Path], tmp_path: Path) -> None:
    made, data = run
    shutil.copy(made.model, tmp_path / "model.safetensors")
    dataset = with_contents(data)
    found = unseen(load(tmp_path / "model.safetensors", runtime="torch"), dataset)
    assert found.trained_on == 0
    assert len(found.images) == len(dataset) - len(evaluate(made.folder, dataset, split="all").failures)
