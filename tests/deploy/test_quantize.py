"""int8: what it costs is measured, what costs too much is refused, and nothing is reported to anyone."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.classifiers import (
    CLASSES,
    make_classifier,
    make_images,
    some_image,
    write_class_folders,
)

from skipnets.classifier import Classifier, describe, load
from skipnets.data.dataset import ImageDataset
from skipnets.data.options import DataOptions
from skipnets.data.preprocessing import Preprocessing
from skipnets.data.sources import open_dataset
from skipnets.data.splits import read_splits
from skipnets.data.volumes import VolumeDataset
from skipnets.deploy.export import export_model
from skipnets.deploy.graph import onnx_graph, openvino_graph, simplify, trace
from skipnets.deploy.quantize import Accuracy, Quantization, judge, open_calibration, quantize
from skipnets.deploy.timing import Timing
from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, evaluate
from skipnets.evaluation.evaluating import open_own_images
from skipnets.models.factory import create_model
from skipnets.scaling import TargetScale
from skipnets.training import Run

MODULE = sys.modules["skipnets.deploy.quantize"]


@pytest.fixture(scope="module")
def onnx_model(classifier: Classifier) -> object:
    model = simplify(classifier.model, classifier.preprocessing, "uint8")
    return onnx_graph(trace(model, classifier.preprocessing.size, "uint8"))


def quantized(
    classifier: Classifier, graph: object, file_format: str, **options: object
) -> tuple[object, Accuracy]:
    dataset = make_images(classifier, **({"wrong": options.pop("wrong")} if "wrong" in options else {}))
    return quantize(
        graph, file_format, Quantization(dataset=dataset, **options), classifier.preprocessing, "uint8"
    )


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What any thread of this process asks of the network; nothing is let out."""
    asked: list[object] = []

    def refuse(*what: object, **_: object) -> None:
        asked.append(what)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_openvino(classifier: Classifier, connections: list[object], tmp_path: Path) -> None:
    dataset = make_images(classifier, wrong=4)
    export = export_model(
        classifier, tmp_path / "m", file_format="openvino", int8=True, calibration=dataset, max_drop=50
    )
    assert export.accuracy is not None
    assert export.accuracy.before == 18 / 20  # two of the four wrong ones are in the validation split
    assert export.accuracy.count == 20
    low, high = export.accuracy.drop_interval
    assert low <= export.accuracy.drop <= high
    assert high - low > 5
    assert f"(95% interval {low:.2f} to {high:.2f})" in str(export.accuracy)
    exported = load(export.path)
    assert exported.export is not None
    assert exported.export["int8"] is True
    assert exported.export["accuracy"]["after"] == export.accuracy.after
    text = (export.path / "model.xml").read_text()
    assert text.count('type="FakeQuantize"') >= 4
    assert np.isfinite(exported.logits(exported.preprocess([some_image()]))).all()
    val = dataset.split("val")
    predicted = exported.logits(exported.preprocess([val.source(index) for index in range(len(val))])).argmax(
        1
    )
    assert float((predicted == val.labels).mean()) == export.accuracy.after
    assert not connections


def test_onnx_where_it_is_faster(
    classifier: Classifier, onnx_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "alternate", timings(fp32=2.0, int8=1.0))
    graph, accuracy = quantized(classifier, onnx_model, "onnx", max_drop=50)
    kinds = {node.op_type for node in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert accuracy.before == 1.0


def test_onnx_where_it_is_not(
    classifier: Classifier, onnx_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "alternate", timings(fp32=1.0, int8=1.0))
    with pytest.raises(
        UserError, match=r"takes 1000\.0 ms an image, 32 bits take 1000.0 ms; use --format openvino"
    ):
        quantized(classifier, onnx_model, "onnx", max_drop=50)


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(12, 13, 14), (60,)])
def test_volumes_and_signals(sides: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is quantized as images are, and the labels that its file gives are those that were counted."""
    monkeypatch.setattr(MODULE, "alternate", timings(fp32=2.0, int8=1.0))
    torch.manual_seed(0)
    network = create_model(
        "resnet8_w16", dims=len(sides), in_chans=1, num_classes=3, block_config=(1, 1), width=8
    )
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, 1, *sides))
    classifier = Classifier.from_model(
        network,
        classes=CLASSES,
        preprocessing=Preprocessing(sides, channels=1, fit="stretch", window=(-3, 3), bits=32),
    )
    volumes = np.random.default_rng(0).normal(size=(40, *sides, 1)).astype(np.float32)
    dataset = VolumeDataset(
        classes=CLASSES,
        names=[f"{index:02}" for index in range(40)],
        labels=classifier.logits(classifier.preprocess(list(volumes))).argmax(1).astype(np.int64),
        splits=np.array(["train", "val"] * 20),
        images=volumes,
        axes=len(sides),
    )
    for file_format, path in (("openvino", tmp_path / "m"), ("onnx", tmp_path / "m.onnx")):
        export = export_model(
            classifier, path, file_format=file_format, int8=True, calibration=dataset, max_drop=50
        )
        assert export.accuracy is not None
        assert (export.accuracy.before, export.accuracy.count) == (1, 20)
        exported = load(path)
        val = dataset.split("val")
        found = exported.logits(exported.preprocess([val.source(index) for index in range(20)]))
        assert float((found.argmax(1) == val.labels).mean()) == export.accuracy.after > 0.8
        wanted = classifier.logits(classifier.preprocess([val.source(index) for index in range(20)]))
        assert 0 < np.abs(found - wanted).max() < 0.5 * np.ptp(wanted)


@pytest.mark.parametrize("file_format", ["openvino", "onnx"])
def test_a_drop_turns_to_the_accuracy_aware_mode(
    file_format: str, classifier: Classifier, onnx_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first int8 graph is made to look bad; the accuracy-aware one is judged as it is."""
    answers = iter([np.arange(20) < 20, np.arange(20) < 10])
    original = MODULE._Data.right

    def right(self: object, predict: object) -> np.ndarray:
        measured = original(self, predict)
        return next(answers, measured)

    monkeypatch.setattr(MODULE._Data, "right", right)
    monkeypatch.setattr(MODULE, "alternate", timings(fp32=2.0, int8=1.0))
    graph = onnx_model if file_format == "onnx" else openvino_graph(onnx_model)
    _, found = quantized(classifier, graph, file_format, max_drop=10)
    assert found.accuracy_aware
    assert found.after >= 0.9


def test_what_costs_too_much_all_the_same_is_refused(
    classifier: Classifier, onnx_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([np.arange(20) < right for right in (20, 10, 12)])
    monkeypatch.setattr(MODULE._Data, "right", lambda self, predict: next(answers))
    with pytest.raises(
        UserError, match=r"drops by 40\.00 points \(100\.00% to 60\.00%\), more than max_drop=5"
    ):
        quantized(classifier, openvino_graph(onnx_model), "openvino", max_drop=5)


@pytest.mark.parametrize(("max_drop", "needed"), [(0.5, 200), (0.0, 200), (3.0, 34)])
def test_too_few_images_cannot_judge_it(classifier: Classifier, max_drop: float, needed: int) -> None:
    """Of 20 images, one is 5 points: no drop of half a point would be seen."""
    with pytest.raises(
        UserError,
        match=rf"^calibration: has 20 validation images, of which one is 5 points of accuracy; "
        rf"to judge max_drop={max_drop:g} it takes at least {needed}$",
    ):
        quantized(classifier, None, "openvino", max_drop=max_drop)


def test_calibration_images_are_put_in_the_classifiers_order() -> None:
    classifier = make_classifier("resnet20")
    dataset = make_images(classifier)
    classifier.classes = ("cat", "ant", "bee")
    shuffled = open_calibration(dataset, classifier)
    for index in range(len(dataset)):
        first = dataset.classes[dataset.labels[index]]
        assert shuffled.classes[shuffled.labels[index]] == first


def test_images_without_a_known_label_judge_nothing(label_run: Run) -> None:
    classifier = load(label_run, runtime="torch", device="cpu")
    own = open_own_images(classifier)
    labels = own.labels.copy()
    unknown = np.flatnonzero(own.splits == "val")[:3]
    labels[unknown] = np.nan
    opened = open_calibration(replace(own, labels=labels), classifier)
    assert len(own.split("val")) - len(opened.split("val")) == 3
    assert not {own.names[index] for index in unknown} & set(opened.split("val").names)
    assert len(opened.split("train")) == len(own.split("train"))


@pytest.mark.parametrize("spelling", ["data", "data/", "link", "moved"])
def test_calibration_takes_the_runs_splits_of_its_own_images(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_class_folders(tmp_path / "data", CLASSES)
    (tmp_path / "link").symlink_to("data")
    classifier = make_classifier("resnet20")
    classifier.provenance["data"] = "data"
    classifier.save(tmp_path / "run" / "model.safetensors")
    classifier = load(tmp_path / "run", device="cpu")
    own = open_dataset(data, seed=7, fractions=(0.4, 0.4, 0.2))
    own.write_splits(tmp_path / "run" / "splits.csv")
    expected = dict(zip(own.names, own.splits.tolist(), strict=True))
    if spelling == "moved":
        data.rename("moved")
        for index in range(10):  # and half of one class is lost, and there is as much that is new
            path = Path("moved") / "ant" / f"{index}.png"
            if index < 5:
                path.unlink()
                del expected[f"ant/{index}.png"]
            else:
                Image.fromarray(some_image((16, 20, 3), 100 + index)).save(path.with_stem(f"new{index}"))
    found = open_calibration(spelling, classifier)
    splits = dict(zip(found.names, found.splits.tolist(), strict=True))
    assert len(splits) == 30
    assert expected == {name: split for name, split in splits.items() if "new" not in name}


def test_calibration_needs_both_splits() -> None:
    classifier = make_classifier("resnet20")
    dataset = make_images(classifier)
    with pytest.raises(UserError, match='calibration: must have images in the split "val"'):
        open_calibration(dataset.split("train"), classifier)


def of_numbers(count: int = 40) -> tuple[Classifier, ImageDataset]:
    """A regression of two numbers, and images with numbers of which one in four is not known."""
    network = make_classifier("resnet20")
    scales = (TargetScale(mean=5.0, std=2.0), TargetScale(mean=-1.0, std=0.1), TargetScale(mean=0.0, std=1.0))
    classifier = Classifier.from_model(
        network.model,
        classes=("age", "dose", "length"),
        preprocessing=network.preprocessing,
        task="regression",
        scales=scales,
    )
    images = make_images(network, count)
    numbers = np.random.default_rng(0).normal(0, 1, (count, 3))
    numbers[::4, 1] = np.nan
    shuffled = replace(images, labels=numbers[:, ::-1], classes=("length", "dose", "age"), regression=True)
    return classifier, shuffled


def test_numbers_change_by_less_than_a_share_of_their_spread(tmp_path: Path) -> None:
    classifier, images = of_numbers()
    export = export_model(
        classifier, tmp_path / "m", file_format="openvino", int8=True, calibration=images, max_drop=50
    )
    assert export.accuracy is None
    assert export.int8
    found = export.agreement
    assert found is not None
    exported = load(export.path)
    assert exported.export is not None
    assert exported.export["int8"] is True
    val = images.split("val")
    sources = [val.source(index) for index in range(len(val))]
    before, after = (each.values(each.preprocess(sources)) for each in (classifier, exported))
    changes = np.abs(after - before).mean(0)
    assert (changes > 0).all()
    np.testing.assert_allclose(found.change, changes, rtol=1e-3)
    np.testing.assert_allclose(found.share, changes / [2.0, 0.1, 1.0], rtol=1e-3)
    numbers = val.labels[:, ::-1]
    for values, errors in ((before, found.mae_before), (after, found.mae_after)):
        np.testing.assert_allclose(errors, np.nanmean(np.abs(values - numbers), axis=0), rtol=1e-3)
    described = describe(export.path)["export"]["agreement"]
    assert described["share"] == list(found.share)
    assert export.to_dict()["agreement"]["count"] == found.count == 20
    fewer = images.select(np.flatnonzero(np.arange(40) != 1))
    with pytest.raises(UserError, match="has 19 validation images; to judge by how much numbers change it"):
        export_model(classifier, tmp_path / "n", file_format="openvino", int8=True, calibration=fewer)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["openvino", "onnx"])
def test_numbers_that_change_too_much_keep_layers_in_32_bits(
    file_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, images = of_numbers()
    monkeypatch.setattr(MODULE, "alternate", timings(fp32=2.0, int8=1.0))
    model = simplify(classifier.model, classifier.preprocessing, "uint8")
    graph = onnx_graph(trace(model, classifier.preprocessing.size, "uint8"))
    graph = openvino_graph(graph) if file_format == "openvino" else graph
    options = Quantization(dataset=open_calibration(images, classifier), scales=classifier.scales)
    rough = quantize(graph, file_format, replace(options, max_drop=90), classifier.preprocessing, "uint8")[1]
    assert not rough.accuracy_aware
    limit = rough.drop / 2
    fine = quantize(graph, file_format, replace(options, max_drop=limit), classifier.preprocessing, "uint8")[
        1
    ]
    assert fine.accuracy_aware
    assert fine.drop <= limit
    monkeypatch.setattr(MODULE, "measure_agreement", lambda *_, **__: rough)
    with pytest.raises(
        UserError, match=r"^int8 was not written: \w+ changes by .*, more than max_drop=1e-05"
    ):
        quantize(graph, file_format, replace(options, max_drop=1e-5), classifier.preprocessing, "uint8")


def timings(**seconds: float) -> object:
    def alternate(candidates: object, **_: object) -> dict[str, Timing]:
        return {name: Timing(seconds=(value,)) for name, value in seconds.items()}

    return alternate


WATCHED = """
import socket, sys
opened = []
def refuse(self, address, *rest):
    opened.append(address)
    raise OSError("no network")
socket.socket.connect = refuse
socket.getaddrinfo = lambda *rest, **named: opened.append(rest) or []
from tests.helpers.classifiers import make_classifier, make_images
from skipnets.deploy.export import export_model
classifier = make_classifier("resnet20")
export_model(classifier, sys.argv[1], file_format="openvino", int8=True,
             calibration=make_images(classifier), max_drop=100)
import time; time.sleep(0.5)
print("opened", opened)
"""


@pytest.mark.slow
def test_no_telemetry(tmp_path: Path) -> None:
    """OpenVINO's and NNCF's telemetry would open a connection from another thread."""
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path / "m")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "opened []\n"


def test_with_several_labels_an_image_is_right_where_all_known_ones_are(label_run: Run) -> None:
    classifier = load(label_run, runtime="torch", device="cpu")
    dataset = open_calibration(label_run.config.data, classifier)
    # The run's own data have the run's splits, by group.
    splits = read_splits(label_run.splits)
    assert all(
        splits[name][1] == split for name, split in zip(dataset.names, dataset.splits.tolist(), strict=True)
    )
    batch = classifier.preprocess([dataset.source(index) for index in range(len(dataset))])
    right = judge(classifier)(classifier.logits(batch), dataset.labels)
    for predicted, row, is_right in zip(
        classifier.predict([dataset.source(index) for index in range(len(dataset))]),
        dataset.labels.tolist(),
        right.tolist(),
        strict=True,
    ):
        known = [(name, value) for name, value in zip(dataset.classes, row, strict=True) if value == value]
        assert is_right == all((name in predicted.labels) == (value == 1) for name, value in known)
    assert 0 < right.sum() < len(right)
    single = make_images(make_classifier("resnet20"))
    with pytest.raises(
        UserError, match="has one class an image, which does not fit a multi-label classifier"
    ):
        open_calibration(single, classifier)


@pytest.mark.slow
def test_int8_keeps_thresholds_and_measures_what_they_decide(label_run: Run, tmp_path: Path) -> None:
    export = export_model(
        label_run,
        tmp_path / "int8",
        file_format="openvino",
        int8=True,
        calibration=label_run.config.data,
        max_drop=60,
    )
    original, exported = load(label_run, runtime="torch", device="cpu"), load(export.path)
    assert exported.thresholds == original.thresholds
    assert export.accuracy is not None
    before, after = (
        evaluate(each, label_run.config.data, split="all", options=DataOptions(group_column="patient"))
        for each in (original, exported)
    )
    splits = read_splits(label_run.splits)
    val = [index for index, name in enumerate(before.names) if splits[name][1] == "val"]
    for evaluation, accuracy in ((before, export.accuracy.before), (after, export.accuracy.after)):
        assert isinstance(evaluation, MultiLabelEvaluation)
        found = evaluation.probabilities[val] >= np.array(original.thresholds)
        right = (found == (evaluation.labels[val] == 1)) | np.isnan(evaluation.labels[val])
        assert accuracy == pytest.approx(right.all(1).mean())
