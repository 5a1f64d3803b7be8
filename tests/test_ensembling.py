"""Several models in one file: the mean of their answers, judged on images that none of them has seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from tests.helpers.classifiers import CLASSES, FORMATS, make_classifier, some_image, write_class_folders
from tests.helpers.model_files import metadata_of, rewrite
from tests.helpers.own_networks import TinyNet

from skipnets.classifier import Classifier, describe, load
from skipnets.data.contents import contents
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.data.splits import SplitRow, read_splits, write_splits
from skipnets.deploy.export import export_model
from skipnets.ensembling import make_ensemble
from skipnets.errors import UserError
from skipnets.evaluation import evaluate
from skipnets.insight.attribution import explain
from skipnets.insight.source import architecture_of
from skipnets.scaling import TargetScale
from skipnets.uncertainty import CalibrationScores, Uncertainty

RESNET: dict[str, Any] = {"name": "resnet20", "width": 4}
IMAGES = [some_image(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each class."""
    return write_class_folders(tmp_path_factory.mktemp("data") / "pets", CLASSES)


def write_run(folder: Path, classifier: Classifier, data: Path, splits: str) -> Path:
    """A run folder, as far as a model needs one.

    Args:
        folder: Where.
        classifier: Its model.
        data: A class folder.
        splits: The first letter of the split of each of the first images of every class; the others train.
    """
    dataset = open_dataset(str(data), fractions=None)
    names = {"v": "val", "t": "test"}
    rows = [
        SplitRow(
            path=name,
            label=label,
            split=names.get(
                splits[int(Path(name).stem)] if int(Path(name).stem) < len(splits) else "", "train"
            ),
            size=content.size,
            hash=content.hash,
        )
        for name, label, content in zip(dataset.names, dataset.label_names, contents(dataset), strict=True)
    ]
    folder.mkdir(parents=True)
    write_splits(folder / "splits.csv", rows)
    classifier.provenance["data"] = str(data)
    classifier.save(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A DenseNet and a ResNet with splits that differ. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root / "densenet", make_classifier(), data, "tttvv"),
        write_run(root / "resnet", make_classifier(**RESNET), data, "ttv-vt"),
    ]


@pytest.fixture(scope="module")
def both(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their ensemble."""
    return make_ensemble(runs, tmp_path_factory.mktemp("ensembles") / "both").folder


@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_probabilities_are_the_mean_of_different_networks(runs: list[Path], both: Path, runtime: str) -> None:
    if runtime == "native":
        pytest.importorskip("skipnets_engine")
    members = [load(folder, runtime="torch") for folder in runs]
    expected = np.mean([softmax(each.logits(each.preprocess(IMAGES)), axis=1) for each in members], axis=0)
    ensemble = load(both, runtime=runtime)
    batch = ensemble.preprocess(IMAGES)
    np.testing.assert_allclose(ensemble.probabilities(batch), expected, rtol=1e-4, atol=1e-6)
    assert ensemble.embed(IMAGES).shape == (3, sum(each.embed(IMAGES).shape[1] for each in members))
    assert [each.architecture for each in ensemble.members] == [each.architecture for each in members]
    assert (ensemble.ensemble, ensemble.network) == (2, "densenet_bc40_k12+resnet20")
    assert {each.runtime.name for each in ensemble.members} == {runtime}


def test_it_is_evaluated_on_images_that_none_of_its_networks_has_seen(
    runs: list[Path], both: Path, data: Path
) -> None:
    """Images 0 and 1 test both; 2 and 4 have chosen one; others, such as 3 and 5, have trained one."""
    splits = read_splits(both / "splits.csv")
    assert {Path(name).stem for name, (_, split) in splits.items() if split == "test"} == {"0", "1"}
    assert {Path(name).stem for name, (_, split) in splits.items() if split == "val"} == {"2", "4"}
    evaluation = evaluate(both)
    assert (len(evaluation.names), evaluation.warnings) == (6, [])
    everything = evaluate(both, data, split="all")
    assert everything.known == {"train": 18, "val": 6, "test": 6}
    members = [load(folder, runtime="torch") for folder in runs]
    images = [data / name for name in evaluation.names]
    expected = np.mean([softmax(each.logits(each.preprocess(images)), axis=1) for each in members], axis=0)
    np.testing.assert_allclose(evaluation.probabilities, expected, rtol=1e-4, atol=1e-6)
    made = make_ensemble(runs, both.with_name("again"))
    assert made.images == {"train": 18, "val": 6, "test": 6}
    assert [note.partition(":")[0] for note in made.notes] == [
        "6 images are left to evaluate the ensemble on"
    ]


def test_networks_of_different_data_know_their_images_by_content(data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "others")
    (other / "ant" / "9.png").write_bytes((data / "bee" / "9.png").read_bytes()[:-12])  # another image
    runs = [
        write_run(tmp_path / "a", make_classifier(), data, "t"),
        write_run(tmp_path / "b", make_classifier(**RESNET), other, "-t"),
    ]
    made = make_ensemble(runs, tmp_path / "both")
    assert "were trained on different data" in made.notes[0]
    assert "data" not in describe(made.folder)["provenance"]
    known = evaluate(made.folder, data, split="all").known
    assert known == {"train": 30, "val": 0, "test": 0}
    with pytest.raises(UserError, match="name the data to evaluate it on"):
        evaluate(made.folder)


def test_a_model_outside_a_run_leaves_it_unknown_what_was_seen(runs: list[Path], tmp_path: Path) -> None:
    alone = Path(shutil.copy(runs[1] / "model.safetensors", tmp_path))
    made = make_ensemble([runs[0], alone], tmp_path / "both")
    assert made.images is None
    assert not (made.folder / "splits.csv").exists()
    assert f"{alone} is in no run folder, so it is not known which images" in made.notes[0]


def test_each_network_of_an_ensemble_counts_as_one(
    runs: list[Path], both: Path, data: Path, tmp_path: Path
) -> None:
    third = write_run(tmp_path / "third", make_classifier("resnet20", width=8), data, "-")
    made = make_ensemble([both, third], tmp_path / "all")
    assert made.classifier.ensemble == 3
    members = [load(folder, runtime="torch") for folder in (*runs, third)]
    expected = np.mean([softmax(each.logits(each.preprocess(IMAGES)), axis=1) for each in members], axis=0)
    ensemble = load(made.folder)
    np.testing.assert_allclose(
        ensemble.probabilities(ensemble.preprocess(IMAGES)), expected, rtol=1e-4, atol=1e-6
    )
    assert f"{both} is an ensemble: each of its 2 networks counts as one" in made.notes
    assert any(note.startswith("no images are left to evaluate the ensemble on") for note in made.notes)


def test_calibration_is_left_out_and_can_be_renewed(runs: list[Path], data: Path, tmp_path: Path) -> None:
    calibrated = load(runs[0], runtime="torch")
    calibrated.temperature = 3.0
    calibrated.uncertainty = Uncertainty(
        temperature=3.0, tta="none", sets=CalibrationScores.of(np.arange(1.0, 10.0))
    )
    calibrated.provenance["calibration"] = {"images": 9}
    first = write_run(tmp_path / "calibrated", calibrated, data, "tttvv")
    made = make_ensemble([first, runs[1]], tmp_path / "both")
    assert made.notes[0] == (
        f"the calibration of {first} is left out: skipnets calibrate {made.folder} fits the ensemble's own"
    )
    ensemble = load(made.folder)
    assert (ensemble.temperature, ensemble.uncertainty) == (1.0, None)
    members = [load(folder, runtime="torch") for folder in runs]
    expected = np.mean([softmax(each.logits(each.preprocess(IMAGES)), axis=1) for each in members], axis=0)
    np.testing.assert_allclose(
        ensemble.probabilities(ensemble.preprocess(IMAGES)), expected, rtol=1e-4, atol=1e-6
    )
    assert calibrated.temperature == 3.0
    assert calibrated.uncalibrated().model is calibrated.model


def test_thresholds_are_those_of_uncalibrated_probabilities(tmp_path: Path) -> None:
    """A label is found at 0.8 of a temperature of 2 where it is at σ(2·logit(0.8)) of 1."""
    single = [make_classifier(), make_classifier(**RESNET)]
    models = []
    for number, (each, temperature) in enumerate(zip(single, (2.0, 1.0), strict=True)):
        several = Classifier.from_model(
            each.model,
            classes=CLASSES,
            preprocessing=each.preprocessing,
            task="multi-label",
            thresholds=(0.8, 0.5, 1.0),
        )
        several.temperature = temperature
        several.save(tmp_path / f"{number}.safetensors")
        models.append(tmp_path / f"{number}.safetensors")
    ensemble = load(make_ensemble(models, tmp_path / "both").folder)
    moved = expit(2 * np.log(0.8 / 0.2))
    assert ensemble.thresholds == pytest.approx(((moved + 0.8) / 2, 0.5, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_an_export_holds_the_different_networks(both: Path, file_format: Any, tmp_path: Path) -> None:
    suffix = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}[file_format]
    exported = load(export_model(both, tmp_path / f"a{suffix}", file_format=file_format).path)
    ensemble = load(both)
    np.testing.assert_allclose(
        exported.probabilities(exported.preprocess(IMAGES)),
        ensemble.probabilities(ensemble.preprocess(IMAGES)),
        atol=1e-5,
    )
    np.testing.assert_allclose(exported.embed(IMAGES), ensemble.embed(IMAGES), atol=1e-5)
    assert exported.architectures == ensemble.architectures


def test_its_map_is_the_mean_of_maps_of_one_scale(runs: list[Path], both: Path) -> None:
    image = some_image((16, 20, 3))  # the input's size, so that a map's pixels are the input's
    [[found]] = explain(load(both, runtime="torch"), [image], classes=["bee"])
    each = [next(explain(load(folder, runtime="torch"), [image], classes=["bee"]))[0] for folder in runs]
    maps = [explanation.map() for explanation in each]
    np.testing.assert_allclose(found.map(), np.mean([m / np.abs(m).max() for m in maps], axis=0), atol=1e-5)
    assert found.stage == ", ".join(str(explanation.stage) for explanation in each)
    assert found.probability == pytest.approx(
        np.mean([explanation.probability for explanation in each]), rel=1e-4
    )


def test_what_stands_for_one_network_is_refused(both: Path) -> None:
    ensemble = load(both, runtime="torch")
    for source in (both, ensemble):
        with pytest.raises(
            UserError, match=r"is an ensemble of different networks \(densenet_bc40_k12, resnet20\)"
        ):
            architecture_of(source)


def altered(folder: Path, **changes: Any) -> Path:
    """A classifier like the DenseNet's, apart from this."""
    network = make_classifier(**RESNET).model
    given: dict[str, Any] = {"classes": CLASSES, "preprocessing": Preprocessing(size=(16, 20))}
    classifier = Classifier.from_model(network, **(given | changes))
    classifier.save(folder / "other.safetensors")
    return folder / "other.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ("ant", "cat", "bee")},
            "must have the classes of .*densenet.* in the same order$",
        ),
        (
            {"preprocessing": Preprocessing(size=16)},
            r"must have the preprocessing of .*, but has size \[16, 16\] instead of \[16, 20\]$",
        ),
        (
            {"preprocessing": Preprocessing(size=(16, 20), mean=(0.5, 0.5, 0.5))},
            r"mean \[0.5, 0.5, 0.5\] instead of \[0.485, 0.456, 0.406\]; runs with one splits.csv",
        ),
        (
            {"task": "multi-label"},
            "other.safetensors: must be a classifier, as .* is, not a multi-label classifier$",
        ),
        (
            {"task": "regression", "scales": [TargetScale(mean=0.0, std=1.0)] * 3},
            "other.safetensors: must be a classifier, as .* is, not a regression$",
        ),
    ],
)
def test_models_that_differ_are_refused(
    runs: list[Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_ensemble([runs[0], altered(tmp_path, **changes)], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_what_is_no_model_or_there_twice_is_refused(runs: list[Path], both: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    copied = shutil.copytree(runs[1], tmp_path / "copy")
    for models, message in (
        ([runs[0]], "^models: must be at least two to average, not 1$"),
        ([], "^models: must be at least two to average, not 0$"),
        ([runs[0], runs[1], runs[0]], "densenet: must be given once, as its network would count twice$"),
        ([runs[1], copied], "copy: has a network of .*resnet, which would count twice;"),
        ([both, runs[1]], "resnet: has a network of .*both, which would count twice;"),
        ([runs[0], tmp_path / "none"], "none does not exist: name a model file"),
    ):
        with pytest.raises(UserError, match=message):
            make_ensemble(models, out)
    assert not out.exists()


def test_nothing_is_replaced_or_left(
    runs: list[Path], both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (both / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=f"^out={both}: already exists; remove it or name another$"):
        make_ensemble(runs, both)
    assert (both / "model.safetensors").read_bytes() == before
    with pytest.raises(
        UserError, match=r"^out=.*a.safetensors: must be a folder, which gets a model.safetensors$"
    ):
        make_ensemble(runs, tmp_path / "a.safetensors")

    def full(*_: object) -> None:
        raise UserError("no space left on device")

    monkeypatch.setattr(Classifier, "save", full)
    with pytest.raises(UserError, match="no space left"):
        make_ensemble(runs, tmp_path / "both")
    assert not list(tmp_path.iterdir())


def test_networks_of_others_are_of_one_architecture(tmp_path: Path) -> None:
    own, ours = TinyNet(3, 3), make_classifier(**RESNET)
    others = Classifier.from_model(own, classes=CLASSES, preprocessing=ours.preprocessing)
    with pytest.raises(
        UserError, match=r"architectures: must be of networks that .* lists, or all one, not of"
    ):
        Classifier.from_members([ours, others])


def test_damaged_architectures_are_refused(both: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(both / "model.safetensors", tmp_path))
    metadata = metadata_of(file)
    [first, second] = metadata["architectures"]  # type: ignore[misc]
    for wrong, message in (
        ("x", "architectures is of the wrong type"),
        ([first], "architectures: must be 2, one for each network"),
        ([second, first], "beginning with architecture"),
        ([first, {**second, "growth_rate": 1 << 30}], "which no network has|growth_rate"),
        ([first, {**second, "num_classes": 4}], "classes: must be 4, the network's outputs, not 3"),
    ):
        rewrite(file, metadata={**metadata, "architectures": wrong})
        with pytest.raises(UserError, match=f"damaged metadata .*({message})"):
            load(file)
    rewrite(file, metadata={**metadata, "architectures": [first, {**second, "width": 8}]})
    with pytest.raises(
        UserError, match=r"conv1.weight has shape \(4, 3, 3, 3\), the architecture needs|do not fit"
    ):
        load(file)
