"""Evaluation: which images are used, under which names, and the caveats that are reported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from skipnets.classifier import Classifier, load
from skipnets.data import ImageDataset, Preprocessing, open_dataset
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.evaluation.intervals import wilson_interval
from skipnets.models.registry import config_to_dict, model_config
from skipnets.tables import as_text

COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class ColorReader:
    """A runtime that sees the mean color: it is right on pure images. Order: green, red, blue."""

    name = "by hand"
    input_type = "float32"
    device = "cpu"

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return 4 * batch.mean((2, 3))[:, [1, 0, 2]]

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError


def reader(path: Path | None = None, data: object = None) -> Classifier:
    return Classifier(
        architecture=config_to_dict(model_config("resnet20", num_classes=3)),
        classes=("green", "red", "blue"),
        preprocessing=Preprocessing(size=4, mean=(0.5,) * 3, std=(0.5,) * 3),
        provenance={} if data is None else {"data": data},
        runtime=ColorReader(),
        path=path,
    )


def paint(path: Path, color: str, size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLORS[color]).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten images a class; two of "red" are painted green."""
    for color in COLORS:
        for index in range(10):
            shown = "green" if color == "red" and index < 2 else color
            paint(tmp_path / "pets" / color / f"{index}.png", shown)
    return tmp_path / "pets"


@pytest.fixture
def run(pets: Path, tmp_path: Path) -> Classifier:
    """A classifier in a run folder, trained on `pets`."""
    open_dataset(pets, fractions=(0.5, 0.2, 0.3)).write_splits(tmp_path / "run" / "splits.csv")
    return reader(tmp_path / "run" / "model.safetensors", str(pets))


def memory(labels: list[int], classes: tuple[str, ...], names: list[str] | None = None) -> ImageDataset:
    images = np.stack([np.full((5, 5, 3), COLORS.get(classes[i], (9, 9, 9)), np.uint8) for i in labels])
    return ImageDataset(
        classes=classes,
        names=names or [f"{index:03d}" for index in range(len(labels))],
        labels=np.array(labels, np.int64),
        splits=np.array(["test"] * len(labels)),
        images=images,
    )


def test_a_folder_of_its_own(pets: Path) -> None:
    evaluation = evaluate(reader(), pets)
    assert len(evaluation.names) == 30
    assert evaluation.metrics.accuracy == pytest.approx(28 / 30)
    # Rows and columns in the classifier's order: green, red, blue.
    assert evaluation.metrics.confusion.tolist() == [[10, 0, 0], [2, 8, 0], [0, 0, 10]]
    assert evaluation.known is None
    assert evaluation.warnings == []
    wrong = evaluation.probabilities.argmax(1) != evaluation.labels
    assert [evaluation.names[index] for index in np.flatnonzero(wrong)] == ["red/0.png", "red/1.png"]


@pytest.mark.parametrize(
    "order", [("blue", "green", "red"), ("red", "blue", "green"), ("green", "red", "blue")]
)
def test_classes_are_matched_by_name(order: tuple[str, ...]) -> None:
    evaluation = evaluate(reader(), memory([0, 1, 2, 0], order))
    assert evaluation.metrics.accuracy == 1
    assert [evaluation.classes[index] for index in evaluation.labels] == [*order, order[0]]


def test_fewer_classes_than_the_classifier_knows() -> None:
    evaluation = evaluate(reader(), memory([0, 0, 1], ("blue", "red")))
    assert evaluation.metrics.support.tolist() == [0, 1, 2]
    assert evaluation.metrics.accuracy == 1
    assert evaluation.warnings == ["no images of green: their metrics are undefined"]
    green = evaluation.to_dict()["classes"][0]
    assert green == {
        "name": "green",
        "precision": None,
        "recall": None,
        "f1": None,
        "auroc": None,
        "support": 0,
    }


def test_more_classes_than_the_classifier_knows() -> None:
    with pytest.raises(UserError, match=r"does not have: pink, white \(its classes: green, red, blue\)"):
        evaluate(reader(), memory([0, 1, 2], ("blue", "pink", "white")))
    # A name alone, without images, does no harm.
    assert evaluate(reader(), memory([0], ("blue", "pink"))).metrics.accuracy == 1


def test_undecodable_images_are_listed_and_counted_out(pets: Path) -> None:
    (pets / "red" / "0.png").write_bytes(b"broken")
    (pets / "blue" / "9.png").write_bytes((pets / "blue" / "8.png").read_bytes()[:40])
    evaluation = evaluate(reader(), pets, batch_size=7)
    assert sorted(evaluation.failures) == ["blue/9.png", "red/0.png"]
    assert len(evaluation.names) == 28
    assert evaluation.metrics.support.tolist() == [10, 9, 9]
    assert evaluation.metrics.accuracy == pytest.approx(27 / 28)
    assert evaluation.warnings == ["2 of the 30 images could not be read and are not counted"]
    assert [evaluation.classes[label] for label in evaluation.labels] == [
        n.split("/")[0] for n in evaluation.names
    ]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    for color in COLORS:
        paint(tmp_path / color / "a.png", color)
        (tmp_path / color / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of the 3 images could be read; the first: .*known format"):
        evaluate(reader(), tmp_path)


def test_the_runs_own_test_split_is_the_default(run: Classifier, pets: Path) -> None:
    expected = open_dataset(pets, fractions=(0.5, 0.2, 0.3)).split("test").names
    evaluation = evaluate(run)
    assert evaluation.names == expected
    assert evaluation.data == str(pets)
    assert evaluation.known == {"train": 0, "val": 0, "test": 9}
    assert evaluation.warnings == []


@pytest.mark.parametrize(
    ("split", "known", "words"),
    [
        ("train", {"train": 15, "val": 0, "test": 0}, ["15 of the 15 images were trained on"]),
        ("val", {"train": 0, "val": 6, "test": 0}, ["6 of the 6 images chose the best epoch"]),
        ("all", {"train": 15, "val": 6, "test": 9}, ["15 of the 30 images were", "6 of the 30 images"]),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_images_that_were_trained_on(
    run: Classifier, pets: Path, split: str, known: dict[str, int], words: list[str], named: bool
) -> None:
    evaluation = evaluate(run, pets if named else None, split=split)
    assert evaluation.known == known
    assert len(evaluation.warnings) == len(words)
    for warning, start in zip(evaluation.warnings, words, strict=True):
        assert warning.startswith(start)


def test_the_runs_data_under_any_name(run: Classifier, pets: Path, tmp_path: Path) -> None:
    expected = evaluate(run).names
    # The same folder, named in another way; moved; and moved with a loss.
    (tmp_path / "link").symlink_to(pets)
    assert evaluate(run, tmp_path / "link").names == expected
    shutil.move(pets, tmp_path / "elsewhere")
    (tmp_path / "link").unlink()
    moved = evaluate(run, tmp_path / "elsewhere")
    assert moved.names == expected
    assert moved.known == {"train": 0, "val": 0, "test": 9}
    (tmp_path / "elsewhere" / expected[0]).unlink()
    assert evaluate(run, tmp_path / "elsewhere").names == expected[1:]
    with pytest.raises(UserError, match=r"no such folder.*if they have moved, name them"):
        evaluate(run)


def test_a_part_of_the_runs_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for color in COLORS:
            for index in range(4):
                paint(tmp_path / "data" / split / color / f"{index}.png", color)
    open_dataset(tmp_path / "data").write_splits(tmp_path / "run" / "splits.csv")
    classifier = reader(tmp_path / "run" / "model.safetensors", str(tmp_path / "data"))
    assert evaluate(classifier, tmp_path / "data" / "test").known == {"train": 0, "val": 0, "test": 12}
    known = evaluate(classifier, tmp_path / "data" / "train").known
    assert known is not None
    assert known["train"] + known["val"] == 12


def listing(path: Path, numbers: range) -> Path:
    """A manifest of images beside it, each of another size, and so of other content."""
    lines = ["path,label"]
    for number in numbers:
        color = list(COLORS)[number % 3]
        paint(path.parent / f"{number}.png", color, size=(5 + number, 6))
        lines.append(f"{number}.png,{color}")
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("numbers", "images", "known"),
    [
        (range(30, 42), 12, {"train": 0, "val": 0, "test": 0}),
        (range(24, 36), 12, {"train": 2, "val": 2, "test": 2}),
        (range(40), 10, {"train": 0, "val": 0, "test": 10}),  # the run's, and ten more
    ],
)
def test_a_manifest_beside_the_runs_own(
    numbers: range,
    images: int,
    known: dict[str, int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = listing(tmp_path / "data" / "train.csv", range(30))
    dataset = open_dataset(own)
    splits = np.array([["train", "val", "test"][int(name.split(".")[0]) % 6 // 2] for name in dataset.names])
    replace(dataset, splits=splits).write_splits(tmp_path / "run" / "splits.csv")
    classifier = reader(tmp_path / "run" / "model.safetensors", str(own))
    beside = listing(own.with_name("test.csv"), numbers)
    evaluation = evaluate(classifier, beside)
    assert len(evaluation.names) == images
    assert evaluation.known == known
    left_out = f"10 images that {tmp_path / 'run' / 'splits.csv'} does not list, or that have changed since"
    of_run = images < len(numbers)
    assert [left_out in line for line in caplog.messages] == ([True] if of_run else [])
    opened = evaluate(classifier, open_dataset(beside, fractions=None))
    assert len(opened.names) == len(numbers)  # they keep the splits that they have
    assert opened.data == str(own if of_run else own.parent)


def test_images_that_came_after_the_training_are_left_out_with_a_warning(
    run: Classifier, pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = evaluate(run, pets, split="all").names
    paint(pets / "red" / "new.png", "red", size=(40, 40))
    assert not caplog.messages
    assert evaluate(run, pets, split="all").names == before
    [line] = caplog.messages
    assert line.startswith("warning: 1 image that ")
    assert line.endswith(" does not list, or that have changed since, are left out")


def test_a_class_folder_and_a_manifest_in_it_are_not_the_same_data(run: Classifier, pets: Path) -> None:
    paint(pets / "more" / "new.png", "red", size=(40, 40))
    (pets / "more.csv").write_text("path,label\nmore/new.png,red\n")
    assert evaluate(run, pets / "more.csv").names == ["more/new.png"]


def test_new_images_are_not_counted_as_the_runs_own(run: Classifier, tmp_path: Path) -> None:
    for color in COLORS:
        for index in range(10):  # under the names of the run's images
            paint(tmp_path / "new" / color / f"{index}.png", color, size=(7, 7))
    evaluation = evaluate(run, tmp_path / "new")
    assert len(evaluation.names) == 30
    assert evaluation.known == {"train": 0, "val": 0, "test": 0}
    assert evaluation.warnings == []


def test_renamed_copies_of_training_images_are_known(tmp_path: Path) -> None:
    for color in COLORS:
        for index in range(8):
            paint(tmp_path / "pets" / color / f"{index}.png", color, size=(6, 5 + index))
    dataset = open_dataset(tmp_path / "pets", fractions=(0.5, 0.25, 0.25))
    dataset.write_splits(tmp_path / "run" / "splits.csv")
    classifier = reader(tmp_path / "run" / "model.safetensors", str(tmp_path / "pets"))
    train = dataset.split("train")
    for index in range(4):
        label = train.classes[train.labels[index]]
        copy = tmp_path / "new" / label / f"other name {index}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(train.file(index).read_bytes())
    paint(tmp_path / "new" / "red" / "new.png", "red", size=(40, 40))
    evaluation = evaluate(classifier, tmp_path / "new")
    assert len(evaluation.names) == 5
    assert evaluation.known == {"train": 4, "val": 0, "test": 0}
    assert evaluation.warnings[0].startswith("4 of the 5 images were trained on")


def test_runs_of_version_0_1_are_known_by_their_folder(run: Classifier, pets: Path) -> None:
    assert run.path is not None
    splits = run.path.with_name("splits.csv")
    rows = [line.split(",")[:3] for line in splits.read_text().splitlines()]
    splits.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert evaluate(run, pets).known == {"train": 0, "val": 0, "test": 9}
    assert evaluate(run, pets, split="train").known == {"train": 15, "val": 0, "test": 0}


def test_a_named_set_of_the_run(tmp_path: Path) -> None:
    digits = open_dataset("digits")
    digits.write_splits(tmp_path / "splits.csv")
    classifier = Classifier(
        architecture=config_to_dict(model_config("resnet20", num_classes=10)),
        classes=digits.classes,
        preprocessing=Preprocessing(size=4),
        provenance={"data": "digits"},
        runtime=TenWay(),
        path=tmp_path / "model.safetensors",
    )
    test = digits.split("test")
    for data in (None, "digits", digits):
        evaluation = evaluate(classifier, data)
        assert (evaluation.names, evaluation.data) == (test.names, "digits")
        assert evaluation.known == {"train": 0, "val": 0, "test": len(test)}
    assert evaluation.metrics.top5 is not None


class TenWay(ColorReader):
    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return batch.reshape(len(batch), -1)[:, :10]


def test_opened_images_keep_their_splits(run: Classifier, pets: Path) -> None:
    other = open_dataset(pets, seed=7, fractions=(0.2, 0.2, 0.6))
    evaluation = evaluate(run, other)
    assert evaluation.names == other.split("test").names
    assert evaluation.known is not None
    assert evaluation.known["train"] > 0
    assert evaluation.warnings


@pytest.mark.parametrize("path", [None, Path("/nowhere/model.safetensors")])
def test_no_data_and_no_run(path: Path | None) -> None:
    with pytest.raises(UserError, match="not in a run folder: name the data"):
        evaluate(reader(path, "pets"))


def test_a_split_without_images(pets: Path) -> None:
    with pytest.raises(UserError, match=r"split=val: .*pets has images only in: test"):
        evaluate(reader(), pets, split="val")
    with pytest.raises(UserError, match=r"split='tset'.*did you mean test"):
        evaluate(reader(), pets, split="tset")
    with pytest.raises(UserError, match="batch_size=0: must be at least 1"):
        evaluate(reader(), pets, batch_size=0)


def test_outputs_that_are_no_numbers_are_not_taken_for_the_first_class(pets: Path) -> None:
    class Broken(ColorReader):
        def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.full((len(batch), 3), np.nan, np.float32)

    classifier = reader()
    classifier.runtime = Broken()
    with pytest.raises(UserError, match="this model: the network's outputs are not finite"):
        evaluate(classifier, pets)


def test_progress_counts_every_image(pets: Path) -> None:
    (pets / "red" / "0.png").write_bytes(b"broken")
    calls: list[tuple[int, int]] = []
    evaluate(reader(), pets, batch_size=8, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_batch_size_changes_nothing(pets: Path) -> None:
    first, second = (evaluate(reader(), pets, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-7)
    assert first.names == second.names


def test_intervals_count_patients_and_not_their_images(tmp_path: Path) -> None:
    labels = [0] * 40 + [1] * 20
    alone = memory(labels, ("blue", "green", "red"))
    wrong = np.arange(60) % 20 < 5  # of three patients of four, one looks red
    alone.images[wrong] = (255, 0, 0)  # type: ignore[index]
    grouped = replace(alone, groups=np.array([f"p{number // 5:02}" for number in range(60)]))
    one, other = evaluate(reader(), alone), evaluate(reader(), grouped)
    assert one.metrics.accuracy == other.metrics.accuracy == 0.75
    assert one.metrics.accuracy_interval == wilson_interval(45, 60)
    assert (one.metrics.groups, other.metrics.groups) == (None, 12)
    assert other.to_dict()["groups"] == 12
    widths = [high - low for low, high in (one.metrics.accuracy_interval, other.metrics.accuracy_interval)]
    assert widths[1] > 2 * widths[0]
    assert "over 12 groups of images" in as_text(other.tables())
    other.save(tmp_path)
    rows = pyarrow.parquet.read_table(tmp_path / "predictions.parquet")
    assert rows.schema.names[:3] == ["path", "label", "group"]
    assert rows["group"].to_pylist()[:6] == ["p00"] * 5 + ["p01"]
    of_one = evaluate(reader(), replace(alone, groups=np.array(["p"] * 60)))
    assert "how much metrics vary among groups is not known" in " ".join(of_one.warnings)


@pytest.mark.parametrize("table", ["parquet", "csv"])
def test_what_is_saved(run: Classifier, tmp_path: Path, table: str) -> None:
    evaluation = evaluate(run)
    evaluation.save(tmp_path / "out", table=table)  # type: ignore[arg-type]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "confusion.png", f"predictions.{table}",
    }  # fmt: skip
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved == evaluation.to_dict()
    assert saved["images"] == 9
    assert saved["accuracy_interval"][0] < saved["accuracy"] <= saved["accuracy_interval"][1]
    assert saved["ece_bins"] == 15
    assert saved["classifier"].endswith("model.safetensors")
    with Image.open(tmp_path / "out" / "confusion.png") as image:
        image.verify()
    if table == "parquet":
        rows = pyarrow.parquet.read_table(tmp_path / "out" / "predictions.parquet")
        assert rows.schema.names == [
            "path",
            "label",
            "prediction",
            "probability",
            "p:green",
            "p:red",
            "p:blue",
        ]
        assert rows["path"].to_pylist() == evaluation.names
        np.testing.assert_array_equal(rows["p:red"].to_numpy(), evaluation.probabilities[:, 1])
        np.testing.assert_array_equal(rows["probability"].to_numpy(), evaluation.probabilities.max(1))


def test_a_real_model_from_its_file(tmp_path: Path) -> None:
    from skipnets.models.factory import create_model

    model = create_model("densenet_bc40_k12", block_config=(1, 1), growth_rate=4, num_classes=3)
    Classifier.from_model(model, classes=("green", "red", "blue"), preprocessing=Preprocessing(size=8)).save(
        tmp_path / "model.safetensors"
    )
    dataset = memory([0, 1, 2, 2], ("blue", "green", "red"))
    classifier = load(tmp_path / "model.safetensors")
    evaluation = evaluate(classifier, dataset)
    assert dataset.images is not None
    said = classifier.predict(dataset.images)
    assert [evaluation.classes[index] for index in evaluation.probabilities.argmax(1)] == [
        p.label for p in said
    ]
