"""The temperature is the best there is, fitted on images it may be, and in all probabilities after."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from tests.helpers.classifiers import write_class_folders

from skipnets.classifier import Classifier, describe, load
from skipnets.data import ImageDataset, Preprocessing
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.evaluation.calibration import (
    NoTemperatureError,
    calibrate,
    fit_label_temperature,
    fit_temperature,
)
from skipnets.evaluation.evaluating import open_own_images, same_data
from skipnets.evaluation.metrics import measure
from skipnets.models import create_model
from skipnets.models.registry import config_to_dict, model_config
from skipnets.probabilities import softmax
from skipnets.runtimes.runtime import NoFeaturesError
from skipnets.training import Run


def answers(
    seed: int, count: int, classes: int, scale: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labels drawn from softmax(logits), then the logits multiplied: the temperature is about `scale`."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    probabilities = softmax(logits)
    labels = np.array([rng.choice(classes, p=row) for row in probabilities], np.int64)
    return (scale * logits).astype(np.float32), labels


def nll(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    scores = logits.astype(np.float64)  # float32 would round by a hundred times what is compared
    return float(-log_softmax(scores / temperature, axis=1)[np.arange(len(labels)), labels].mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(30, 300), st.integers(2, 9), st.floats(0.2, 8))
def test_the_temperature_is_what_scipy_and_a_grid_find(
    seed: int, count: int, classes: int, scale: float
) -> None:
    logits, labels = answers(seed, count, classes, scale)
    grid = np.geomspace(0.05, 50, 101)
    try:
        temperature = fit_temperature(logits, labels)
    except NoTemperatureError:  # then the best of the grid is one of its ends, too
        assert np.argmin([nll(logits, labels, other) for other in grid]) in (0, len(grid) - 1)
        return
    found = minimize_scalar(
        lambda log_t: nll(logits, labels, np.exp(log_t)), bounds=(-4.6, 4.6), method="bounded"
    )
    assert temperature == pytest.approx(float(np.exp(found.x)), rel=1e-3)
    best = nll(logits, labels, temperature)
    assert all(best <= nll(logits, labels, other) + 1e-9 for other in grid)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_it_undoes_a_known_factor(scale: float) -> None:
    logits, labels = answers(0, 20_000, 5, scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.05)
    assert measure(logits, labels, temperature=scale).ece < 0.015


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[3, 0], [0, 3]], [0, 1], "hardly makes a mistake on these 2 images"),
        ([[3, 0], [0, 3]], [1, 0], "no better than chance"),
        ([[0, 0], [0, 0]], [1, 0], "hardly makes a mistake|chance"),
    ],
)
def test_predictions_without_a_best_temperature_are_refused(
    logits: list[list[float]], labels: list[int], message: str
) -> None:
    with pytest.raises(NoTemperatureError, match=message):
        fit_temperature(np.array(logits, np.float32), np.array(labels))


class OverconfidentReader:
    """A runtime that reads the class off the first pixel, and is always sure."""

    name = "by hand"
    device = "cpu"
    input_type = "float32"

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        said = np.rint(batch[:, 0, 0, 0] * 255).astype(int) // 40
        return 12 * np.eye(3, dtype=np.float32)[said]

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.eye(6, dtype=np.float32)[np.rint(batch[:, 0, 0, 0] * 255).astype(int) // 50]


def reader(**fields: object) -> Classifier:
    settings = {
        "architecture": config_to_dict(model_config("resnet20", num_classes=3, in_chans=1)),
        "classes": ("a", "b", "c"),
        "preprocessing": Preprocessing(size=4, channels=1, mean=(0,), std=(1,)),
        "provenance": {},
        "runtime": OverconfidentReader(),
    }
    return Classifier(**{**settings, **fields})


def gray(count: int, *, wrong_every: int, splits: tuple[str, ...]) -> ImageDataset:
    """Images whose gray level is the class, except for every nth one."""
    labels = np.arange(count) % 3
    shown = np.where(np.arange(count) % wrong_every == 0, (labels + 1) % 3, labels)
    return ImageDataset(
        classes=("a", "b", "c"),
        names=[f"{index:04d}" for index in range(count)],
        labels=labels,
        splits=np.resize(splits, count),
        images=np.broadcast_to((shown * 40 + 20)[:, None, None], (count, 4, 4)).astype(np.uint8),
    )


def test_calibration_affects_all_probabilities_of_a_classifier() -> None:
    classifier = reader()
    dataset = gray(300, wrong_every=5, splits=("val",))
    calibration = calibrate(classifier, dataset)
    # Right on 4 of 5 with one of two alternatives: the best probability of the answer is 0.8.
    expected = 12 / np.log(0.8 / 0.1)
    assert calibration.temperature == pytest.approx(expected)
    assert classifier.temperature == calibration.temperature
    assert (calibration.images, calibration.split) == (300, "val")
    assert calibration.ece_before == pytest.approx(0.2, abs=1e-3)
    assert calibration.ece_after == pytest.approx(0, abs=1e-5)
    assert calibration.nll_after < calibration.nll_before
    [warning] = calibration.warnings
    assert warning.startswith("the training images are not there")
    record = json.loads(json.dumps(classifier.provenance["calibration"]))
    assert record["temperature"] == calibration.temperature

    one = dataset.images[1]
    assert classifier.predict([one])[0].probability == pytest.approx(0.8)
    batch = classifier.preprocess([one])
    assert classifier.probabilities(batch).max() == pytest.approx(0.8)
    assert classifier.logits(batch).max() == 12
    evaluation = evaluate(classifier, dataset, split="val")
    assert evaluation.metrics.nll == pytest.approx(calibration.nll_after)
    assert evaluation.probabilities.max(1) == pytest.approx(0.8)
    assert evaluation.to_dict()["temperature"] == calibration.temperature


def test_calibrating_twice_changes_nothing() -> None:
    classifier = reader()
    images = gray(300, wrong_every=7, splits=("val",))
    first = calibrate(classifier, images)
    second = calibrate(classifier, images)
    assert replace(second, created="") == replace(first, created="")


def test_the_temperature_is_kept_in_the_model_file(tmp_path: Path) -> None:
    model = create_model("resnet20", num_classes=2, in_chans=1)
    classifier = Classifier.from_model(
        model, classes=["a", "b"], preprocessing=Preprocessing(size=8, channels=1)
    )
    classifier.temperature = 1.7000000000000002
    classifier.save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").temperature == 1.7000000000000002
    assert describe(tmp_path / "m.safetensors")["temperature"] == 1.7000000000000002
    classifier.temperature = 0.0
    with pytest.raises(UserError, match=r"temperature=0\.0: must be a positive number"):
        classifier.save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").temperature == 1.7000000000000002


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1"])
def test_an_impossible_temperature_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"temperature=.*: must be a positive number"):
        reader(temperature=value)


def in_run(tmp_path: Path, dataset: ImageDataset) -> Classifier:
    tmp_path.mkdir(exist_ok=True)
    dataset.write_splits(tmp_path / "splits.csv")
    return reader(path=tmp_path / "model.safetensors", provenance={"data": "somewhere"})


def test_images_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    images = gray(300, wrong_every=5, splits=("train", "val", "test"))
    classifier = in_run(tmp_path / "run", images)
    assert calibrate(classifier, images).images == 100
    with pytest.raises(UserError, match="100 of these images were trained on"):
        calibrate(classifier, images, split="train")
    with pytest.raises(UserError, match="100 of these images were trained on"):
        calibrate(classifier, images, split="all")
    with pytest.raises(UserError, match="300 of these images were trained on"):
        calibrate(reader(), gray(300, wrong_every=5, splits=("train",)), split="train")


def test_test_images_are_warned_about_and_so_are_few(tmp_path: Path) -> None:
    images = gray(120, wrong_every=5, splits=("train", "test"))
    calibration = calibrate(in_run(tmp_path / "run", images), images, split="test")
    assert len(calibration.warnings) == 2
    assert "60 of the images are the run's test images" in calibration.warnings[0]
    assert "60 images are few" in calibration.warnings[1]


def test_data_without_splits_are_used_whole_unless_they_may_have_been_trained_on(tmp_path: Path) -> None:
    assert calibrate(reader(), gray(300, wrong_every=5, splits=("test",))).images == 300
    with pytest.raises(UserError, match=r"digits: .* no splits\.csv beside it says which"):
        calibrate(
            reader(provenance={"data": "digits"}),
            "digits",
        )
    with pytest.raises(UserError, match=r"split=val: .* has images only in"):
        calibrate(reader(), gray(300, wrong_every=5, splits=("train", "test")))


@pytest.mark.parametrize("spelling", ["photos", "photos/", "./photos", "x/../photos", "link", "{}/photos"])
@pytest.mark.parametrize("recorded", ["photos", "{}/photos/"])
def test_the_data_that_were_trained_on_are_known_under_any_name(
    recorded: str, spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    write_class_folders(tmp_path / "photos", ("a", "b", "c"))
    (tmp_path / "link").symlink_to("photos")
    classifier = reader(provenance={"data": recorded.format(tmp_path)})
    with pytest.raises(UserError, match=r"the classifier was trained on these data, and no splits\.csv"):
        calibrate(classifier, spelling.format(tmp_path))


def test_a_named_dataset_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for first, second, same in (
        ("digits", "digits", True),
        ("digits", "./digits", False),
        ("digits", tmp_path / "digits", False),
        ("./digits", tmp_path / "digits", True),
        ("data/train.csv", "data/val.csv", False),
        ("data/train.csv", "data", False),
    ):
        assert same_data(first, second) is same_data(second, first) is same


def test_the_temperature_stays_where_hardly_a_mistake_is_made_and_chance_is_refused() -> None:
    classifier = reader(temperature=1.5)
    images = gray(301, wrong_every=1000, splits=("val",)).select(np.arange(1, 301))
    calibration = calibrate(classifier, images)
    assert (calibration.temperature, classifier.temperature) == (1.5, 1.5)
    assert (
        "images in memory (val): the classifier hardly makes a mistake on these 300"
        in calibration.warnings[0]
    )
    assert calibration.warnings[0].endswith("it stays 1.5")
    assert classifier.uncertainty is not None
    with pytest.raises(UserError, match=r"images in memory \(val\): .* no better than chance"):
        calibrate(classifier, gray(300, wrong_every=1, splits=("val",)))


def test_sets_cover_new_images_and_altered_ones_are_rejected() -> None:
    classifier = reader()
    with pytest.raises(
        UserError, match=r"^coverage=0\.9: needs a calibrated model; first skipnets calibrate"
    ):
        classifier.predict(np.zeros((4, 4), np.uint8), coverage=0.9)
    images = gray(300, wrong_every=5, splits=("val", "train"))
    calibration = calibrate(classifier, images)
    assert calibration.highest_coverage == pytest.approx(150 / 151)
    assert calibration.outlier_auroc.keys() == {"energy", "max-logit"}  # whose training images are unknown
    one = images.images[1]
    # A fifth is wrong: the predicted class alone covers 0.7, and for 0.9 one more must be in the set.
    assert classifier.predict(one, coverage=0.7)[0].prediction_set == ("b",)
    assert len(classifier.predict(one, coverage=0.9)[0].prediction_set or ()) == 3
    row = classifier.predict(one, reject=0.05)[0]
    assert (row.p_value, row.rejected) == (1.0, False)  # all images have the same logits here
    with pytest.raises(
        UserError, match=r"coverage=0\.999: needs at least 999 calibration images, and the model"
    ):
        classifier.predict(one, coverage=0.999)
    with pytest.raises(
        UserError, match=r"reject=0\.001: needs at least 999 calibration images, and the model"
    ):
        classifier.predict(one, reject=0.001)
    with pytest.raises(UserError, match=r"reject=1\.5: must be above 0 and below 1"):
        classifier.predict(one, reject=1.5)
    classifier.temperature = 1.0
    with pytest.raises(
        UserError, match=r"coverage=0\.7: the temperature was changed after skipnets calibrate"
    ):
        classifier.predict(one, coverage=0.7)


def test_sets_are_made_as_it_was_asked_for(label_run: Run) -> None:
    classifier = reader()
    images = gray(300, wrong_every=5, splits=("val", "train"))
    assert calibrate(classifier, images, sets="aps").sets == "aps"
    probabilities = classifier.probabilities(classifier.preprocess(list(images.images[:40])))
    assert classifier.uncertainty is not None
    assert classifier.uncertainty.sets is not None
    limit = classifier.uncertainty.sets.quantile(0.7)
    for row, prediction in zip(
        probabilities.tolist(), classifier.predict(list(images.images[:40]), coverage=0.7), strict=True
    ):
        ranked = sorted(zip(row, classifier.classes, strict=True), key=lambda each: -each[0])
        shares = np.array([share for share, _ in ranked])
        scores = (np.cumsum(shares) - shares / 2).tolist()
        wanted = [name for (_, name), score in zip(ranked, scores, strict=True) if score <= limit]
        assert prediction.prediction_set == tuple(wanted or [ranked[0][1]])
    assert classifier.provenance["calibration"]["sets"] == "aps"
    with pytest.raises(UserError, match="sets=best: must be one of lac, aps, raps"):
        calibrate(classifier, images, sets="best")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="sets=raps: must be lac with a multi-label classifier; others"):
        calibrate(load(label_run, runtime="torch", device="cpu"), sets="raps")


def test_the_temperature_of_several_labels_has_the_lowest_loss() -> None:
    generator = np.random.default_rng(0)
    logits = 3 * generator.normal(size=(200, 4))
    labels = (generator.random((200, 4)) < 1 / (1 + np.exp(-logits / 2.5))).astype(np.float32)
    labels[generator.random((200, 4)) < 0.1] = np.nan
    known = np.isfinite(labels)

    def loss(temperature: float) -> float:
        return float(log_loss(labels[known], 1 / (1 + np.exp(-logits[known] / temperature))))

    best = minimize_scalar(loss, bounds=(0.5, 10), method="bounded", options={"xatol": 1e-6})
    assert fit_label_temperature(logits, labels) == pytest.approx(best.x, abs=1e-3)
    with pytest.raises(NoTemperatureError, match="hardly makes a mistake"):
        fit_label_temperature(np.array([[5.0, -5.0]]), np.array([[1.0, 0.0]]))
    with pytest.raises(NoTemperatureError, match="no label of these images is known"):
        fit_label_temperature(logits, np.full_like(labels, np.nan))


def test_calibration_keeps_the_labels_that_are_found(
    label_run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "skipnets")
    classifier = load(label_run, runtime="torch", device="cpu")
    image = Path(label_run.config.data).with_name("001.png")
    [before] = classifier.predict(image)
    calibration = calibrate(classifier)
    assert calibration.nll_after <= calibration.nll_before
    assert classifier.temperature == calibration.temperature != 1
    [after] = classifier.predict(image)
    assert after.labels == before.labels
    assert after.ranking != before.ranking
    # The data are opened three times, and said to be what they are once.
    assert sum(line.startswith("each file has any number of") for line in caplog.messages) == 1


def test_several_labels_are_rejected_by_their_distance_to_training_images(
    label_run: Run, tmp_path: Path
) -> None:
    classifier = load(label_run, runtime="torch", device="cpu", tta="flip")
    image = Path(label_run.config.data).with_name("001.png")
    calibration = calibrate(classifier)
    assert calibration.outlier_score == "knn"
    assert set(calibration.outlier_auroc) == {"knn"}
    assert calibration.tta == evaluate(classifier, split="val").to_dict()["tta"] == "flip"
    own = open_own_images(load(label_run, device="cpu"))
    having = int((own.split("val").labels == 1).any(1).sum())
    assert calibration.highest_coverage == pytest.approx(having / (having + 1))
    [row] = classifier.predict(image, coverage=0.5)
    assert row.prediction_set is not None
    assert row.prediction_set == tuple(name for name, _ in row.ranking)[: len(row.prediction_set)]

    classifier.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", runtime="torch", device="cpu", tta="flip")
    training, validation = own.split("train"), own.split("val")

    def distances(dataset: ImageDataset) -> NDArray[np.float64]:
        neighbors = NearestNeighbors(n_neighbors=5, metric="cosine")
        neighbors.fit(classifier.embed([training.file(i) for i in range(len(training))]))
        return neighbors.kneighbors(classifier.embed([dataset.file(i) for i in range(len(dataset))]))[0][:, 4]

    usual = distances(validation)
    rows = again.predict([validation.file(i) for i in range(len(validation))], reject=0.2)
    expected = [(1 + (usual >= distance).sum()) / (1 + len(usual)) for distance in usual]
    found = [row.p_value for row in rows]
    # Embeddings are kept in half precision, which may swap neighbors that are as far.
    np.testing.assert_allclose(found, expected, atol=2.01 / (1 + len(usual)))
    assert [row.rejected for row in rows] == [value <= 0.2 for value in found]
    assert sum(bool(row.rejected) for row in rows) <= 0.2 * (1 + len(usual))


def test_without_training_images_several_labels_are_calibrated_and_none_is_rejected(
    label_run: Run, tmp_path: Path
) -> None:
    shutil.copy(label_run.model, tmp_path)
    own = open_own_images(load(label_run, device="cpu"))
    classifier = load(tmp_path / label_run.model.name, runtime="torch", device="cpu")
    classifier.provenance["data"] = str(tmp_path / "gone")
    calibration = calibrate(classifier, own.split("val"), split="all")
    assert calibration.outlier_score is None
    assert calibration.highest_coverage is not None
    [row] = classifier.predict(Path(label_run.config.data).with_name("001.png"), coverage=0.5)
    assert row.prediction_set is not None
    with pytest.raises(UserError, match=r"reject=0\.3: the model was calibrated without what outliers are"):
        classifier.predict(Path(label_run.config.data).with_name("001.png"), reject=0.3)
    assert "the training images are not there, so outliers cannot be recognized" in calibration.warnings


def test_a_network_without_features_is_calibrated_and_none_of_several_labels_is_rejected(
    label_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(_: object) -> NDArray[np.float32]:
        raise NoFeaturesError

    classifier = load(label_run, runtime="torch", device="cpu")
    monkeypatch.setattr(classifier.runtime, "embed", embed)
    calibration = calibrate(classifier)
    assert calibration.highest_coverage is not None
    assert calibration.outlier_score is None
    assert calibration.warnings[-1] == (
        "the network has no features (embed) to compare images by, so outliers cannot be recognized"
    )


def test_numbers_get_intervals_as_wide_as_residuals_on_validation_images(
    number_run: Run, tmp_path: Path
) -> None:
    classifier = load(number_run, runtime="torch", device="cpu")
    calibration = calibrate(classifier)
    assert (calibration.temperature, calibration.nll_before, calibration.outlier_score) == (1, None, "knn")
    assert calibration.highest_coverage == pytest.approx(18 / 19)
    assert any("18 images are few: intervals are uncertain" in each for each in calibration.warnings)
    classifier.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", runtime="torch", device="cpu")
    own = open_own_images(load(number_run, device="cpu"))
    val = own.split("val")
    rows = again.predict([val.file(index) for index in range(len(val))], coverage=0.8, reject=0.2)
    values = np.array([[value for _, value in row.values] for row in rows])  # type: ignore[attr-defined]
    # The ⌈19 · 0.8⌉-th smallest of 18 residuals.
    widths = np.sort(np.abs(values - val.labels), axis=0)[15]
    for row, expected in zip(rows, values, strict=True):
        assert [name for name, _, _ in row.intervals] == list(own.classes)  # type: ignore[attr-defined]
        limits = np.array([ends for _, *ends in row.intervals])  # type: ignore[attr-defined]
        np.testing.assert_allclose(
            limits, np.stack([expected - widths, expected + widths], axis=1), rtol=1e-4
        )
    assert sum(bool(row.rejected) for row in rows) <= 0.2 * 19
    test = evaluate(again, own, split="test", coverage=0.8, reject=0.2)
    told = test.to_dict()
    inside = np.abs(test.predicted - test.numbers) <= widths * (1 + 1e-6)  # type: ignore[union-attr]
    assert [row["measured"] for row in told["prediction_intervals"]["targets"]] == pytest.approx(
        inside.mean(0)
    )
    kept = ~test.selective.rejected  # type: ignore[union-attr]
    errors = np.abs(test.predicted - test.numbers)  # type: ignore[union-attr]
    assert told["rejection"]["mae_kept"] == pytest.approx(errors[kept].mean(0))
    assert {"low:radius mm", "high:radius mm", "rejected"} <= set(test.prediction_columns())
    assert "intervals of radius mm with coverage 0.8" in str(test)
    with pytest.raises(UserError, match=r"coverage=0\.96: needs at least 24 calibration images"):
        again.predict(val.file(0), coverage=0.96)


def test_all_numbers_of_an_image_are_held_at_once_where_that_is_asked_for(number_run: Run) -> None:
    classifier = load(number_run, runtime="torch", device="cpu")
    own = open_own_images(classifier)
    calibration = calibrate(classifier, own, split="val", joint=True)
    assert calibration.joint
    assert classifier.provenance["calibration"]["joint"] is True
    deviations = np.array([scale.std for scale in classifier.scales or ()])
    val, test = (evaluate(classifier, own, split=split, coverage=0.8) for split in ("val", "test"))
    # The ⌈19 · 0.8⌉-th smallest of 18 largest residuals, in standard deviations.
    largest = (np.abs(val.predicted - val.numbers) / deviations).max(1)  # type: ignore[union-attr]
    widths = np.sort(largest)[15] * deviations
    low, high = np.moveaxis(test.selective.intervals, 2, 0)  # type: ignore[union-attr, arg-type]
    np.testing.assert_allclose(high - low, np.broadcast_to(2 * widths, high.shape), rtol=1e-4)
    inside = (np.abs(test.predicted - test.numbers) <= widths * (1 + 1e-6)).all(1)  # type: ignore[union-attr]
    told = test.to_dict()["prediction_intervals"]["all"]
    assert told["measured"] == pytest.approx(inside.mean())
    assert "all numbers at once with coverage 0.8" in str(test)
