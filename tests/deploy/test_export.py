"""Exports: three formats, checked before they are there, with everything in them that `load` needs."""

from __future__ import annotations

import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from scipy.special import expit
from tests.helpers.classifiers import FORMATS, make_classifier, make_images, some_image, write_class_folders

import skipnets
from skipnets.classifier import Classifier, describe, load
from skipnets.deploy.export import CheckFailedError, Export, export_model
from skipnets.errors import UserError
from skipnets.evaluation import MultiLabelEvaluation, RegressionEvaluation, evaluate
from skipnets.scaling import TargetScale
from skipnets.training import Run
from skipnets.uncertainty import CalibrationScores, Uncertainty

OTHER_TASKS = ("multi-label", "regression")
IMAGES = [some_image((31, 23, 3)), some_image((8, 90, 3), 1), some_image((16, 20), 2)]
MODULE = sys.modules["skipnets.deploy.export"]


class TestWhatIsWritten:
    @pytest.mark.parametrize("file_format", FORMATS)
    def test_it_gives_what_torch_gives(
        self, file_format: str, exports: dict[str, Export], classifier: Classifier
    ) -> None:
        exported = load(exports[file_format].path)
        np.testing.assert_allclose(
            exported.logits(exported.preprocess(IMAGES)),
            classifier.logits(classifier.preprocess(IMAGES)),
            atol=1e-5,
        )
        np.testing.assert_allclose(exported.embed(IMAGES), classifier.embed(IMAGES), atol=1e-5)
        for first, second in zip(exported.predict(IMAGES, 3), classifier.predict(IMAGES, 3), strict=True):
            assert [label for label, _ in first.ranking] == [label for label, _ in second.ranking]

    @pytest.mark.parametrize(("pooling", "features"), [("max", 12), ("avgmax", 12), ("catavgmax", 24)])
    def test_every_pooling_is_exported(self, pooling: str, features: int, tmp_path: Path) -> None:
        classifier = make_classifier(global_pool=pooling)
        exported = load(export_model(classifier, output=tmp_path / "a.onnx").path)
        np.testing.assert_allclose(exported.embed(IMAGES), classifier.embed(IMAGES), atol=1e-5)
        assert exported.embed(IMAGES).shape == (len(IMAGES), features)

    @pytest.mark.parametrize(
        "file_format", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS[1:])]
    )
    def test_an_ensemble_is_one_graph(self, file_format: str, tmp_path: Path) -> None:
        members = [make_classifier("resnet20", drop_rate=rate) for rate in (0.0, 0.0)]
        with torch.no_grad():
            members[1].model.get_classifier().weight.mul_(-2)
        ensemble = Classifier.from_members(members)
        suffix = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}[file_format]
        exported = load(export_model(ensemble, tmp_path / f"a{suffix}", file_format=file_format).path)
        expected = np.mean([each.probabilities(each.preprocess(IMAGES)) for each in members], axis=0)
        probabilities = exported.probabilities(exported.preprocess(IMAGES))
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        np.testing.assert_allclose(exported.embed(IMAGES), ensemble.embed(IMAGES), atol=1e-5)
        assert exported.ensemble == 2
        with pytest.raises(UserError, match="is an export without a torch module"):
            _ = exported.members

    def test_an_ensemble_of_several_labels_averages_the_probability_of_each(self, tmp_path: Path) -> None:
        single = [make_classifier("resnet20") for _ in range(2)]
        with torch.no_grad():
            single[1].model.get_classifier().weight.mul_(-2)
        members = [
            Classifier.from_model(
                each.model, classes=each.classes, preprocessing=each.preprocessing, task="multi-label"
            )
            for each in single
        ]
        ensemble = Classifier.from_members(members)
        exported = load(export_model(ensemble, tmp_path / "a.onnx").path)
        expected = np.mean([expit(each.logits(each.preprocess(IMAGES))) for each in members], axis=0)
        probabilities = exported.probabilities(exported.preprocess(IMAGES))
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
        assert (exported.task, exported.thresholds) == ("multi-label", ensemble.thresholds)

    @pytest.mark.parametrize(
        "file_format", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS[1:])]
    )
    @pytest.mark.parametrize(
        "task", ["single-label", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_TASKS)]
    )
    def test_mirrored_views_are_averaged_in_the_graph(
        self, task: Any, file_format: str, tmp_path: Path
    ) -> None:
        """As `tta="flip"` does around the network, and for any number and size of images."""
        single = make_classifier("resnet20")
        scores = CalibrationScores.of(np.arange(1.0, 10.0))
        classifier = Classifier.from_model(
            single.model,
            classes=single.classes,
            preprocessing=single.preprocessing,
            task=task,
            scales=[TargetScale(mean=2.0, std=3.0)] * 3 if task == "regression" else None,
        )
        classifier.uncertainty = Uncertainty(
            temperature=1.0,
            tta="flip",
            **({"intervals": (scores,) * 3} if task == "regression" else {"sets": scores}),  # type: ignore[arg-type]
        )
        classifier.tta = "flip"
        suffix = {"onnx": ".onnx", "openvino": "", "pt2": ".pt2"}[file_format]
        export = export_model(classifier, tmp_path / f"a{suffix}", file_format=file_format)
        exported = load(export.path)
        assert exported.tta == "none"
        assert describe(export.path)["export"]["tta"] == "flip"
        exported.predict(IMAGES[:1], coverage=0.5)
        for count, height in ((1, 16), (3, 24)):
            pixels = np.random.default_rng(count).integers(0, 256, (count, 3, height, 20), np.uint8)
            mean, std = (
                255 * np.array(value, np.float32)[:, None, None]
                for value in (classifier.preprocessing.mean, classifier.preprocessing.std)
            )
            batch = (pixels - mean) / std
            expected = classifier.logits(batch)
            np.testing.assert_allclose(exported.logits(pixels), expected, atol=1e-5)
            np.testing.assert_allclose(exported.embed_batch(pixels), classifier.embed_batch(batch), atol=1e-5)
            classifier.tta = "none"
            assert np.abs(classifier.logits(batch) - expected).max() > 1e-3
            classifier.tta = "flip"

    @pytest.mark.parametrize("file_format", FORMATS)
    def test_metadata_equal_those_of_the_model_file(
        self, file_format: str, exports: dict[str, Export], classifier: Classifier
    ) -> None:
        export = exports[file_format]
        assert classifier.path is not None
        about, expected = describe(export.path), describe(classifier.path)
        for key in (
            "architecture",
            "classes",
            "preprocessing",
            "provenance",
            "parameters",
            "skipnets_version",
        ):
            assert about[key] == expected[key], key
        assert about["path"] == str(export.path)
        assert about["export"] == {
            "format": file_format,
            "input": "uint8",
            "int8": False,
            "check": {
                "images": "generated images",
                "count": 24,
                "largest_difference": export.check.largest_difference,
                "same_labels": 24,
            },
        }
        assert 0 <= export.check.largest_difference < 1e-5
        assert load(export.path).export == {**about["export"], "parameters": about["parameters"]}

    @pytest.mark.parametrize("file_format", FORMATS)
    @pytest.mark.parametrize("shape", [(1, 3, 2, 2), (3, 3, 33, 18), (5, 3, 7, 64)])
    def test_any_number_of_images_of_any_size(
        self, file_format: str, shape: tuple[int, ...], exports: dict[str, Export], classifier: Classifier
    ) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        normalized = classifier.preprocessing.normalize(pixels.transpose(0, 2, 3, 1))
        np.testing.assert_allclose(
            load(exports[file_format].path).logits(pixels), classifier.logits(normalized), atol=1e-5
        )

    def test_onnx_names_are_for_people(self, exports: dict[str, Export]) -> None:
        graph = onnx.load(exports["onnx"].path).graph
        onnx.checker.check_model(exports["onnx"].path)
        named = {
            value.name: [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }
        assert named == {
            "images": ["batch", 3, "height", "width"],
            "logits": ["batch", 3],
            "features": ["batch", 12],
        }
        assert not list(graph.value_info)

    @pytest.mark.parametrize(("file_format", "channels"), [("openvino", 1), ("pt2", 3)])
    def test_float_input(self, file_format: str, channels: int, tmp_path: Path) -> None:
        classifier = make_classifier("resnet20", channels=channels)
        output = tmp_path / ("m" if file_format == "openvino" else f"m.{file_format}")
        export = export_model(classifier, output, file_format=file_format, input_type="float32")
        exported = load(export.path)
        batch = exported.preprocess(IMAGES)
        assert batch.dtype == np.float32
        np.testing.assert_array_equal(batch, classifier.preprocess(IMAGES))
        np.testing.assert_allclose(exported.logits(batch), classifier.logits(batch), atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("densenet121", {"block_config": (1, 1)}),
            ("resnet18", {"norm": None, "width": 8, "output_stride": 4}),
            pytest.param("densenet40_k12", {"norm": "group"}, marks=pytest.mark.slow),
            pytest.param("resnet50", {"width": 8, "output_stride": 4}, marks=pytest.mark.slow),
        ],
    )
    def test_other_architectures(self, name: str, fields: dict[str, object], tmp_path: Path) -> None:
        export = export_model(make_classifier(name, **fields), tmp_path / "m.onnx")
        assert export.check.largest_difference < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("file_format", FORMATS)
    @pytest.mark.parametrize(
        "name",
        ["densenet121", "densenet_bc100_k12", "densenet40_k12", "resnet50", "resnext50_32x4d", "resnet56"],
    )
    def test_whole_architectures(self, name: str, file_format: str, tmp_path: Path) -> None:
        model = skipnets.create_model(name, num_classes=3)
        with torch.no_grad():
            model(torch.randn(8, 3, 64, 64))
        classifier = Classifier.from_model(
            model, classes=("a", "b", "c"), preprocessing=skipnets.Preprocessing(size=64)
        )
        output = tmp_path / ("m" if file_format == "openvino" else f"m.{file_format}")
        assert export_model(classifier, output, file_format=file_format).check.largest_difference < 1e-5

    def test_evaluation_takes_an_export_as_it_takes_a_model_file(
        self, exports: dict[str, Export], classifier: Classifier
    ) -> None:
        images = make_images(classifier, wrong=3)
        expected = evaluate(classifier, images, split="all")
        for export in exports.values():
            found = evaluate(load(export.path), images, split="all")
            assert found.metrics.accuracy == expected.metrics.accuracy == 37 / 40
            np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)

    def test_the_temperature_travels(self, tmp_path: Path) -> None:
        classifier = make_classifier("resnet20")
        classifier.temperature = 2.5
        export_model(classifier, tmp_path / "m.pt2", file_format="pt2")
        exported = load(tmp_path / "m.pt2")
        np.testing.assert_allclose(
            [each.probability for each in exported.predict(IMAGES)],
            [each.probability for each in classifier.predict(IMAGES)],
            atol=1e-6,
        )


class TestTheCheck:
    def test_the_runs_own_validation_images(self, tmp_path: Path) -> None:
        data = write_class_folders(tmp_path / "data", ("ant", "bee", "cat"))
        classifier = make_classifier("resnet20")
        classifier.provenance["data"] = str(data)
        classifier.save(tmp_path / "run" / "model.safetensors")
        dataset = skipnets.data.open_dataset(data)
        dataset.write_splits(tmp_path / "run" / "splits.csv")
        export = export_model(tmp_path / "run", file_format="pt2")
        assert export.path == tmp_path / "run" / "model.pt2"
        assert export.check.images == "the run's validation images"
        assert export.check.count == len(dataset.split("val"))

    def test_given_images_of_which_some_are_damaged(self, tmp_path: Path) -> None:
        data = write_class_folders(tmp_path / "data", ("ant", "bee", "cat"))
        (data / "ant" / "0.png").write_bytes(b"broken")
        export = export_model(make_classifier("resnet20"), tmp_path / "m.pt2", file_format="pt2", check=data)
        assert export.check.images == str(data)
        assert export.check.count == 29

    @pytest.mark.parametrize("file_format", ["openvino", "pt2"])
    def test_what_computes_something_else_is_deleted(
        self, file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = MODULE.simplify

        def wrong(*arguments: object) -> object:
            model = right(*arguments)
            model.get_classifier().bias.data[0] += 0.1
            return model

        monkeypatch.setattr(MODULE, "simplify", wrong)
        output = tmp_path / ("m" if file_format == "openvino" else f"m.{file_format}")
        with pytest.raises(CheckFailedError, match=r"a probability differs by .* from PyTorch's") as caught:
            export_model(make_classifier("resnet20"), output, file_format=file_format)
        assert str(output) in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_what_is_not_a_number_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        right = MODULE.simplify

        def wrong(*arguments: object) -> object:
            model = right(*arguments)
            model.get_classifier().bias.data[0] = float("nan")
            return model

        monkeypatch.setattr(MODULE, "simplify", wrong)
        with pytest.raises(CheckFailedError):
            export_model(make_classifier("resnet20"), tmp_path / "m.pt2", file_format="pt2")
        assert not list(tmp_path.iterdir())

    def test_tolerance(self, tmp_path: Path) -> None:
        with pytest.raises(CheckFailedError, match=r"tolerance is 0\.0e\+00"):
            export_model(make_classifier(), tmp_path / "m.pt2", file_format="pt2", tolerance=0.0)

    def test_the_model_that_is_exported_stays_as_it_is(self, tmp_path: Path) -> None:
        classifier = make_classifier("resnet20")
        classifier.model.train()
        before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
        export_model(classifier, tmp_path / "m.pt2", file_format="pt2")
        assert classifier.model.training
        assert all(torch.equal(value, before[name]) for name, value in classifier.model.state_dict().items())


KILLED = """
import sys
import onnx
import skipnets.deploy.export as exporting
from tests.helpers.classifiers import make_classifier

def hang(self, *arguments):
    print("checking", flush=True)
    import time; time.sleep(60)

exporting.CheckImages.compare = hang
exporting.trace = lambda *arguments: None  # what takes time, and is not what gets killed
exporting.onnx_graph = lambda program: onnx.load(sys.argv[3])
exporting.export_model(make_classifier(), sys.argv[1], file_format=sys.argv[2])
"""


@pytest.mark.parametrize("file_format", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_killed_export_leaves_nothing_under_the_final_name(
    file_format: str, exports: dict[str, Export], tmp_path: Path
) -> None:
    final = tmp_path / ("m" if file_format == "openvino" else "m.onnx")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(final), file_format, str(exports["onnx"].path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "checking\n"
        assert len(list(tmp_path.iterdir())) == 1  # it was being written, under another name
        process.send_signal(signal.SIGKILL)
    assert not final.exists()


class TestAuto:
    def test_the_fastest_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            MODULE, "_time_one_image", lambda paths: dict.fromkeys(paths, 2.0) | {"openvino": 1.0}
        )
        export = export_model(make_classifier("resnet20"), tmp_path / "m", file_format="auto")
        assert export.path == tmp_path / "m_openvino"
        assert export.seconds == {"onnx": 2.0, "openvino": 1.0}
        assert load(export.path).runtime.name == "openvino"
        assert list(tmp_path.iterdir()) == [export.path]

    def test_why_there_is_nothing_to_take(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"no format could be exported \(onnx: .*; openvino: .* differs by"
        ):
            export_model(make_classifier("resnet20"), tmp_path / "m", file_format="auto", tolerance=0.0)
        assert not list(tmp_path.iterdir())

    def test_it_is_measured(self, exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MODULE, "SECONDS_PER_CHOICE", 0.0)
        seconds = MODULE._time_one_image({name: exports[name].path for name in ("onnx", "openvino")})
        assert sorted(seconds) == ["onnx", "openvino"]
        assert all(0 < value < 1 for value in seconds.values())


class TestWrongInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"file_format": "onxn"}, r"format=onxn: must be one of .*; did you mean onnx"),
            ({"file_format": "torchscript"}, "format=torchscript: must be one of onnx, openvino, pt2, auto"),
            ({"input_type": "float16"}, "input=float16: must be uint8 or float32"),
            ({"int8": True}, "calibration: must be given for int8"),
            (
                {"int8": True, "calibration": "x", "file_format": "pt2"},
                "format=pt2: must be onnx or openvino for int8",
            ),
            ({"max_drop": -1}, "max_drop=-1: must be 0 or more"),
            ({"max_drop": 0.1}, r"^max_drop=0\.1: needs int8, whose drop in accuracy it limits$"),
            ({"output": "m.pt2"}, r"^output=m\.pt2: must end in \.onnx for format=onnx"),
            ({"output": "m.onnx", "file_format": "openvino"}, r"^output=m\.onnx: must be a folder"),
            ({"output": "m.onnx", "file_format": "auto"}, r"^output=m\.onnx: must be without suffix"),
            ({"tolerance": -1.0}, r"^tolerance=-1\.0: must be at least 0"),
            ({"tolerance": float("nan")}, "^tolerance=nan: must be at least 0"),
            ({"check": "/nowhere"}, r"^check: /nowhere: no such folder"),
            ({"int8": True, "calibration": "/nowhere"}, r"^calibration: /nowhere: no such folder"),
        ],
    )
    def test_options(self, options: dict[str, object], words: str, classifier: Classifier) -> None:
        with pytest.raises(UserError, match=words):
            export_model(classifier, **options)

    def test_an_export_of_an_export(self, exports: dict[str, Export]) -> None:
        for export in exports.values():
            with pytest.raises(UserError, match="is an export: export the model file"):
                export_model(export.path)
        with pytest.raises(UserError, match="is an export: export the model file"):
            export_model(load(exports["onnx"].path))

    @pytest.mark.parametrize(
        ("name", "file_format"), [("m", "openvino"), ("m.onnx", "onnx"), ("m.pt2", "pt2"), ("m.onnx", "auto")]
    )
    def test_what_exists_is_not_replaced(
        self, tmp_path: Path, classifier: Classifier, name: str, file_format: Literal["onnx"]
    ) -> None:
        (tmp_path / name).write_text("mine")
        output = tmp_path / ("m" if file_format == "auto" else name)
        with pytest.raises(UserError, match="already exists; remove it"):
            export_model(classifier, output, file_format=file_format)
        assert (tmp_path / name).read_text() == "mine"

    def test_calibration_with_other_classes(self, tmp_path: Path, classifier: Classifier) -> None:
        data = write_class_folders(tmp_path / "data", ("ant", "bee", "dog"))
        with pytest.raises(UserError, match="only one of the two has cat, dog"):
            export_model(classifier, tmp_path / "m.onnx", int8=True, calibration=data)

    def test_a_classifier_that_was_never_saved_needs_an_output(self) -> None:
        with pytest.raises(UserError, match="output: must be given for a classifier that was never saved"):
            export_model(make_classifier("resnet20"))

    @pytest.mark.parametrize("library", ["onnx", "openvino"])
    def test_a_missing_extra(
        self, library: str, tmp_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        output = tmp_path / ("m.onnx" if library == "onnx" else "m")
        with pytest.raises(UserError, match='this needs the extra "deploy": pip install'):
            export_model(classifier, output, file_format=library)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path, classifier: Classifier) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"m\.pt2 cannot be written"):
            export_model(classifier, tmp_path / "file" / "m.pt2", file_format="pt2")


@pytest.mark.slow
def test_real_jpegs_of_odd_sizes_and_the_twenty_pngs(shared_data: Path, tmp_path: Path) -> None:
    """The published ResNet-20 gets all of the twenty right, in every runtime, with the same logits."""
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    model = skipnets.create_model("resnet20", weights=shared_data / "weights" / "resnet20-12fca82f.th")
    classifier = Classifier.from_model(model, classes=labels, preprocessing=skipnets.Preprocessing(size=32))
    pngs = sorted((shared_data / "cifar10-png-20").glob("*.png"))
    from PIL import Image

    jpegs = []
    for index, png in enumerate(pngs):
        jpegs.append(tmp_path / f"{index}.jpg")
        Image.open(png).convert("RGB").resize((17 + 13 * index, 301 - 11 * index)).save(jpegs[-1], quality=80)
    expected = classifier.logits(classifier.preprocess([*pngs, *jpegs]))
    for file_format in FORMATS:
        output = tmp_path / ("m" if file_format == "openvino" else f"m.{file_format}")
        exported = load(export_model(classifier, output, file_format=file_format).path)
        logits = exported.logits(exported.preprocess([*pngs, *jpegs]))
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        found = [prediction.label for prediction in exported.predict(pngs)]
        assert found == [labels[int(png.stem.rpartition("_")[2])] for png in pngs]


@pytest.mark.slow
def test_on_two_thousand_real_images_every_export_is_as_good(shared_data: Path, tmp_path: Path) -> None:
    """The published ResNet-20: fp32 gives the same labels and accuracy as PyTorch, int8 nearly so."""
    with tarfile.open(shared_data / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and parts[1] == "test" and int(Path(member.name).stem) < 200:
                archive.extract(member, tmp_path, filter="data")
    data = tmp_path / "cifar10-jpeg" / "test"
    labels = sorted(folder.name for folder in data.iterdir())
    model = skipnets.create_model("resnet20", weights=shared_data / "weights" / "resnet20-12fca82f.th")
    Classifier.from_model(model, classes=labels, preprocessing=skipnets.Preprocessing(size=32)).save(
        tmp_path / "model.safetensors"
    )
    expected = evaluate(load(tmp_path / "model.safetensors", runtime="torch"), data, split="all")
    assert len(expected.names) == 2000
    assert expected.metrics.accuracy > 0.8
    for file_format in FORMATS:
        export = export_model(tmp_path / "model.safetensors", file_format=file_format, check=data)
        found = evaluate(load(export.path), data, split="all")
        assert (found.logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.999
        assert found.metrics.accuracy == pytest.approx(expected.metrics.accuracy, abs=0.001)
    int8 = export_model(
        tmp_path / "model.safetensors",
        tmp_path / "int8",
        file_format="openvino",
        int8=True,
        calibration=data,
        max_drop=2.0,
    )
    assert int8.accuracy is not None
    assert int8.accuracy.count == 300
    found = evaluate(load(int8.path), data, split="all")
    assert found.metrics.accuracy == pytest.approx(expected.metrics.accuracy, abs=0.02)


@pytest.mark.parametrize("runtime", ["onnxruntime", "native"])
def test_numbers_are_the_same_in_an_export_and_in_the_engine(
    number_run: Run, tmp_path: Path, runtime: str
) -> None:
    if runtime == "native":
        pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    path: Path = number_run.model
    if runtime == "onnxruntime":
        path = tmp_path / "numbers.onnx"
        export = export_model(number_run.model, path)
        assert export.task == "regression"
        assert export.check.same_labels == export.check.count
    original = load(number_run, runtime="torch", device="cpu")
    other = load(path, runtime=runtime)
    assert (other.task, other.scales) == ("regression", original.scales)
    first, second = (evaluate(each, number_run.config.data, split="all") for each in (original, other))
    assert isinstance(first, RegressionEvaluation)
    assert isinstance(second, RegressionEvaluation)
    np.testing.assert_allclose(first.predicted, second.predicted, atol=1e-4 * first.numbers.std(0).max())


@pytest.mark.parametrize("runtime", ["onnxruntime", "native"])
def test_several_labels_are_the_same_in_an_export_and_in_the_engine(
    label_run: Run, tmp_path: Path, runtime: str
) -> None:
    if runtime == "native":
        pytest.importorskip("skipnets_engine", reason="needs the native engine: pip install ./engine")
    path: Path = label_run.model
    if runtime == "onnxruntime":
        path = tmp_path / "labels.onnx"
        export = export_model(label_run.model, path)
        assert export.check is not None
        assert export.check.same_labels == export.check.count
    original = load(label_run, runtime="torch", device="cpu")
    other = load(path, runtime=runtime)
    assert (other.task, other.thresholds) == ("multi-label", original.thresholds)
    first, second = (evaluate(each, label_run.config.data, split="all") for each in (original, other))
    assert isinstance(first, MultiLabelEvaluation)
    assert isinstance(second, MultiLabelEvaluation)
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_of_numbers_averages_them(number_folds_run: Run, tmp_path: Path) -> None:
    export = export_model(number_folds_run.model, tmp_path / "numbers.onnx")
    assert export.check.same_labels == export.check.count
    original = load(number_folds_run, runtime="torch", device="cpu")
    batch = original.preprocess([Path(number_folds_run.config.data).with_name("000.png")])
    exported = load(export.path)
    pixels = exported.preprocess([Path(number_folds_run.config.data).with_name("000.png")])
    np.testing.assert_allclose(
        exported.values(pixels), np.mean([each.values(batch) for each in original.members], axis=0), rtol=1e-4
    )
