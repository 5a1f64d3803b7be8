"""The classifier: what is saved comes back, what is given is classified, and networks are averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tests.helpers.model_files import metadata_of, rewrite

import skipnets
from skipnets.classifier import Classifier, Prediction, describe, load
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.probabilities import softmax

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def classifier() -> Classifier:
    model = create_model("densenet_bc40_k12", block_config=(1, 1), growth_rate=4, num_classes=3)
    with torch.no_grad():
        for _ in range(3):  # norms that have seen something, so that eval mode says something
            model(torch.randn(4, 3, 16, 16) * 3)
    return Classifier.from_model(
        model,
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        provenance={"data": "pets", "epochs": 3, "scores": {"accuracy": 0.9}},
    )


@pytest.fixture
def saved(classifier: Classifier, tmp_path: Path) -> Path:
    classifier.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def make_image(seed: int = 0, shape: tuple[int, ...] = (20, 24, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def batch(count: int = 5, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


class TestSaveAndLoad:
    def test_what_is_saved_comes_back(self, classifier: Classifier, saved: Path) -> None:
        loaded = load(saved)
        assert loaded.classes == CLASSES
        assert loaded.preprocessing == classifier.preprocessing
        assert loaded.architecture == classifier.architecture
        assert loaded.provenance == classifier.provenance
        assert loaded.path == saved
        in_torch = load(saved, runtime="torch")
        np.testing.assert_array_equal(in_torch.logits(batch()), classifier.logits(batch()))
        original, back = classifier.model.state_dict(), loaded.model.state_dict()
        assert list(original) == list(back)
        assert all(torch.equal(original[name], back[name]) for name in original)

    def test_a_loaded_classifier_saves_the_same_file(self, saved: Path, tmp_path: Path) -> None:
        load(saved).save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()

    def test_a_run_folder_stands_for_its_model(self, saved: Path) -> None:
        assert load(saved.parent).path == saved

    @pytest.mark.parametrize("name", ["resnet20", "densenet40_k12", "resnet18"])
    @pytest.mark.parametrize("norm", ["batch", "group", None])
    def test_every_kind_of_network(self, name: str, norm: str | None, tmp_path: Path) -> None:
        model = create_model(
            name, block_config=(1, 1), num_classes=3, norm=norm, drop_path_rate=0.2, stem="cifar"
        ).to(memory_format=torch.channels_last)
        original = Classifier.from_model(model, classes=CLASSES, preprocessing=Preprocessing(size=16))
        original.save(tmp_path / "m.safetensors")
        np.testing.assert_allclose(
            load(tmp_path / "m.safetensors").logits(batch()), original.logits(batch()), atol=1e-6
        )

    def test_half_precision_is_stored_as_float32(self, classifier: Classifier, tmp_path: Path) -> None:
        classifier.model.bfloat16()
        classifier.save(tmp_path / "m.safetensors")
        assert {p.dtype for p in load(tmp_path / "m.safetensors").model.parameters()} == {torch.float32}

    def test_a_new_head_is_described_as_it_is(self) -> None:
        model = create_model("resnet20", block_config=(1,))
        model.reset_classifier(3)
        made = Classifier.from_model(model, classes=CLASSES, preprocessing=Preprocessing(size=16))
        assert made.architecture["num_classes"] == 3

    def test_loaded_parameters_can_be_trained(self, saved: Path) -> None:
        model = load(saved).model
        assert not model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        model(torch.from_numpy(batch())).sum().backward()

    def test_provenance_becomes_plain_values(self, classifier: Classifier, tmp_path: Path) -> None:
        classifier.provenance = {
            "lr": np.float32(0.5), "sizes": (1, 2), "folder": Path("a/b"), "nan": float("nan"), "ok": True,
        }  # fmt: skip
        classifier.save(tmp_path / "m.safetensors")
        expected = {"lr": 0.5, "sizes": [1, 2], "folder": "a/b", "nan": None, "ok": True}
        assert load(tmp_path / "m.safetensors").provenance == expected
        classifier.provenance = {"model": object()}
        with pytest.raises(UserError, match="provenance: must hold plain values, not object"):
            classifier.save(tmp_path / "n.safetensors")
        assert not (tmp_path / "n.safetensors").exists()

    def test_diverged_weights_are_not_saved(self, classifier: Classifier, saved: Path) -> None:
        before = saved.read_bytes()
        with torch.no_grad():
            next(classifier.model.parameters())[0] = float("nan")
        with pytest.raises(UserError, match=r"features\.conv0\.weight is not finite"):
            classifier.save(saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_a_model_that_left_its_config_is_not_saved(self, classifier: Classifier, tmp_path: Path) -> None:
        classifier.model.classifier = torch.nn.Sequential(torch.nn.Linear(classifier.model.num_features, 3))
        with pytest.raises(UserError, match=r"the model was modified: classifier is Sequential"):
            classifier.save(tmp_path / "m.safetensors")


class TestConstruction:
    @pytest.mark.parametrize(
        ("classes", "size", "channels", "words"),
        [
            (("a", "b"), 16, 3, "classes: must be 3, the network's outputs, not 2"),
            (("a", "b", "a"), 16, 3, "repeated: a"),
            ("abc", 16, 3, "list of at least one name"),
            ((), 16, 3, "list of at least one name"),
            (("a", "b", ""), 16, 3, "list of at least one name"),
            (CLASSES, 16, 1, "must give in_chans=3 channels for densenet_bc40_k12, not 1"),
            (CLASSES, 1, 3, "at least 2×2 for densenet_bc40_k12, not 1×1"),
        ],
    )
    def test_parts_that_do_not_fit(
        self, classifier: Classifier, classes: tuple[str, ...], size: int, channels: int, words: str
    ) -> None:
        with pytest.raises(UserError, match=words):
            Classifier.from_model(
                classifier.model, classes=classes, preprocessing=Preprocessing(size, channels=channels)
            )

    def test_the_given_model_keeps_its_modes(self, classifier: Classifier) -> None:
        model = classifier.model.train()
        model.features.norm0.eval() if hasattr(model.features, "norm0") else model.features.norm5.eval()
        modes = [module.training for module in model.modules()]
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        classifier.predict([make_image()])
        classifier.embed([make_image()])
        assert [module.training for module in model.modules()] == modes
        assert any(modes)
        assert not all(modes)
        assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


class TestPredict:
    def test_is_the_softmax_of_the_network(self, classifier: Classifier) -> None:
        given_images = [make_image(seed) for seed in range(5)]
        with torch.inference_mode():
            inputs = torch.from_numpy(classifier.preprocessing.batch(given_images))
            expected = F.softmax(classifier.model.eval()(inputs).double(), 1).numpy()
        for row, prediction in zip(
            expected, classifier.predict(given_images, top_k=3, batch_size=2), strict=True
        ):
            order = np.argsort(-row)
            assert [label for label, _ in prediction.ranking] == [CLASSES[index] for index in order]
            np.testing.assert_allclose([p for _, p in prediction.ranking], row[order], atol=1e-6)
            assert (prediction.label, prediction.probability) == prediction.ranking[0]
            assert prediction.error is None

    def test_every_kind_of_input_gives_the_same_prediction(
        self, classifier: Classifier, tmp_path: Path
    ) -> None:
        pixels = make_image()
        Image.fromarray(pixels).save(tmp_path / "a.png")
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        inputs = [
            *(str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(pixels), pixels),
            *(tensor, tensor / 255, (tensor / 255).double()),
        ]
        predictions = classifier.predict(inputs, batch_size=len(inputs))
        assert [p.source for p in predictions] == [str(tmp_path / "a.png")] * 2 + [
            f"[{i}]" for i in range(2, 7)
        ]
        assert [p.error for p in predictions] == [None] * len(inputs)
        rows = classifier.preprocess(inputs)
        np.testing.assert_array_equal(rows, np.stack([rows[0]] * len(inputs)))

    def test_one_lazily_opened_image_many_times(self, classifier: Classifier, tmp_path: Path) -> None:
        Image.fromarray(make_image(shape=(900, 900, 3))).save(tmp_path / "a.jpg")
        expected = classifier.preprocess([tmp_path / "a.jpg"])
        with Image.open(tmp_path / "a.jpg") as opened:
            rows = classifier.preprocess([opened] * 6, workers=4)
        np.testing.assert_array_equal(rows, np.repeat(expected, 6, axis=0))

    @pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (20, 24, 4)])
    def test_arrays_of_other_channels(self, classifier: Classifier, shape: tuple[int, ...]) -> None:
        array = make_image(shape=shape)
        chw = torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy())
        first, second = classifier.preprocess([array, chw])
        np.testing.assert_array_equal(first, second)

    def test_stacked_arrays_are_lists_of_images(self, classifier: Classifier) -> None:
        stack = np.stack([make_image(seed) for seed in range(3)])
        singly = [p.ranking for p in classifier.predict(list(stack))]
        assert [p.ranking for p in classifier.predict(stack)] == singly
        assert [p.ranking for p in classifier.predict(torch.from_numpy(stack).permute(0, 3, 1, 2))] == singly

    def test_failures_keep_their_place(self, classifier: Classifier, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(b"no image")
        bad = [
            tmp_path / "bad.png",
            tmp_path / "none.png",
            make_image() / 255.0,
            torch.full((3, 4, 4), 2.0),
            None,
        ]
        inputs = [make_image(0), *bad, make_image(1)]
        predictions = classifier.predict(inputs, batch_size=2)  # type: ignore[arg-type]
        assert [p.error is None for p in predictions] == [True, *[False] * 5, True]
        assert predictions[0].ranking == classifier.predict([make_image(0)])[0].ranking
        assert predictions[6].ranking == classifier.predict([make_image(1)])[0].ranking
        assert predictions[1].source == str(tmp_path / "bad.png")
        assert "known format" in str(predictions[1].error)
        assert "no such file" in str(predictions[2].error)
        assert "uint8" in str(predictions[3].error)
        assert "uint8" in str(predictions[4].error)
        assert predictions[1] == Prediction(source=predictions[1].source, error=predictions[1].error)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        good=st.lists(st.booleans(), max_size=12),
        batch_size=st.integers(1, 5),
        workers=st.integers(1, 3),
        top_k=st.integers(1, 5),
    )
    def test_order_and_count_never_change(
        self, classifier: Classifier, good: list[bool], batch_size: int, workers: int, top_k: int
    ) -> None:
        inputs = [
            make_image(i, (16, 16, 3)) if fine else np.zeros((2, 2, 2), np.uint8)
            for i, fine in enumerate(good)
        ]
        predictions = classifier.predict(iter(inputs), top_k, batch_size=batch_size, workers=workers)
        assert [p.error is None for p in predictions] == good
        assert [p.source for p in predictions] == [f"[{i}]" for i in range(len(good))]
        probabilities = (
            softmax(classifier.logits(classifier.preprocess(inputs))) if all(good) and good else []
        )
        for prediction, row in zip(predictions, probabilities, strict=False):
            assert len(prediction.ranking) == min(top_k, 3)
            assert prediction.probability == pytest.approx(row.max(), abs=1e-6)

    def test_long_inputs_are_read_as_they_are_needed(self, classifier: Classifier) -> None:
        read: list[int] = []

        def images() -> object:
            for index in range(1000):
                read.append(index)
                yield make_image(index, (16, 16, 3))

        stream = classifier.predict_iter(images(), batch_size=4)  # type: ignore[arg-type]
        assert read == []
        next(stream)
        assert len(read) <= 3 * 4 + 1
        stream.close()  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "one", ["a.png", Path("a.png"), make_image(), make_image()[:, :, 0], torch.zeros(3, 8, 8)]
    )
    def test_one_image_is_a_list_of_one(
        self, classifier: Classifier, one: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Image.fromarray(make_image()).save("a.png")
        assert classifier.predict(one) == classifier.predict([one])  # type: ignore[arg-type, list-item]
        np.testing.assert_array_equal(classifier.embed(one), classifier.embed([one]))  # type: ignore[arg-type, list-item]

    def test_folders_and_patterns_stand_for_their_images(
        self, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        names = [f"{folder}/{index}.png" for folder in ("new", "old") for index in range(2)]
        for index, name in enumerate(names):
            Path(name).parent.mkdir(exist_ok=True)
            Image.fromarray(make_image(index)).save(name)
        Path("new/notes.txt").touch()
        for images, expected in (
            ("new/", names[:2]),
            (Path("new"), names[:2]),
            ("*/1.png", [names[1], names[3]]),
            (["new", "old/*.png"], names),
        ):
            predictions = classifier.predict(images, top_k=3)  # type: ignore[arg-type]
            assert [prediction.source for prediction in predictions] == expected
            for name, prediction in zip(expected, predictions, strict=True):
                [alone] = classifier.predict(make_image(names.index(name)), top_k=3)
                assert prediction.label == alone.label
                assert prediction.probability == pytest.approx(alone.probability, abs=1e-6)
        [absent] = classifier.predict("absent.png")
        assert "no such file" in str(absent.error)
        with pytest.raises(UserError, match=r"images: no file matches \*\.jpg"):
            classifier.predict("*.jpg")
        Path("empty").mkdir()
        with pytest.raises(UserError, match="images: empty holds no images"):
            classifier.predict(["new", "empty"])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"top_k": 0}, "top_k=0: must be at least 1"),
            ({"batch_size": 0}, "batch_size=0: must be at least 1"),
            ({"workers": 0}, "workers=0: must be at least 1"),
        ],
    )
    def test_impossible_options(self, classifier: Classifier, options: dict[str, int], words: str) -> None:
        with pytest.raises(UserError, match=words):
            classifier.predict_iter([], **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize("inputs", [3, None])
    def test_what_is_no_image(self, classifier: Classifier, inputs: object) -> None:
        kinds = "paths, PIL images, arrays or tensors"
        with pytest.raises(UserError, match=f"^images: must be {kinds}, not {type(inputs).__name__}$"):
            classifier.predict(inputs)  # type: ignore[arg-type]

    def test_what_is_no_path(self, classifier: Classifier) -> None:
        with pytest.raises(UserError, match=r"^path: must be a path, not Classifier$"):
            load(classifier)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"^run: must be a path, not Classifier$"):
            skipnets.report.write_report(classifier)  # type: ignore[arg-type]

    def test_no_images(self, classifier: Classifier) -> None:
        assert classifier.predict([]) == []
        assert classifier.preprocess([]).shape == (0, 3, 16, 16)
        assert classifier.embed([]).shape == (0, classifier.model.num_features)


class TestArrays:
    def test_logits(self, classifier: Classifier) -> None:
        logits = classifier.logits(batch())
        assert logits.shape == (5, 3)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(classifier.logits(torch.from_numpy(batch())), logits)

    @pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 16, 16, 3)])
    def test_logits_of_another_shape(self, classifier: Classifier, shape: tuple[int, ...]) -> None:
        with pytest.raises(UserError, match=r"must be \(N, 3, H, W\), not \("):
            classifier.logits(np.zeros(shape, np.float32))

    def test_preprocess_then_logits_is_predict(self, classifier: Classifier) -> None:
        inputs = [make_image(seed) for seed in range(70)]
        rows = softmax(classifier.logits(classifier.preprocess(inputs)))
        labels = [CLASSES[index] for index in rows.argmax(1)]
        assert [p.label for p in classifier.predict(inputs)] == labels

    def test_embed_is_what_the_head_sees(self, classifier: Classifier) -> None:
        inputs = [make_image(seed) for seed in range(5)]
        vectors = classifier.embed(inputs, batch_size=2)
        assert vectors.shape == (5, classifier.model.num_features)
        assert vectors.dtype == np.float32
        with torch.inference_mode():
            logits = classifier.model.get_classifier()(torch.from_numpy(vectors))
        np.testing.assert_allclose(logits, classifier.logits(classifier.preprocess(inputs)), atol=1e-5)

    def test_arrays_have_no_place_for_failures(self, classifier: Classifier, tmp_path: Path) -> None:
        for function in (classifier.embed, classifier.preprocess):
            with pytest.raises(UserError, match=r"none\.png"):
                function([make_image(), tmp_path / "none.png"])


def test_real_images_with_real_weights(shared_data: Path, tmp_path: Path) -> None:
    """A ResNet-20 from elsewhere gets all of twenty CIFAR-10 images right, from file to label."""
    model = create_model("resnet20", weights=shared_data / "weights" / "resnet20-12fca82f.th")
    Classifier.from_model(
        model, classes=[str(digit) for digit in range(10)], preprocessing=Preprocessing(size=32)
    ).save(tmp_path / "model.safetensors")
    images = sorted((shared_data / "cifar10-png-20").glob("*.png"))
    predictions = load(tmp_path).predict(images, top_k=2)
    assert len(predictions) == 20
    assert [prediction.label for prediction in predictions] == [path.stem[-1] for path in images]


class TestWrongTypes:
    def test_a_batch_is_an_array(self, classifier: Classifier) -> None:
        with pytest.raises(UserError, match=r"^batch: must be an array or tensor \(N, 3, H, W\), not int$"):
            classifier.logits(3)  # type: ignore[arg-type]

    def test_counts_are_whole_numbers(self, classifier: Classifier) -> None:
        for wrong in ("x", 1.5):
            with pytest.raises(UserError, match=rf"^top_k={wrong!r}: must be a whole number, at least 1$"):
                classifier.predict(make_image(), top_k=wrong)  # type: ignore[arg-type]
        assert len(classifier.predict(make_image(), top_k=np.int64(2))[0].ranking) == 2  # type: ignore[arg-type]


class TestEnsembles:
    @pytest.fixture
    def members(self) -> list[Classifier]:
        made = []
        for seed in range(3):
            torch.manual_seed(seed)
            model = create_model("resnet20", block_config=(1, 1), num_classes=3)
            made.append(Classifier.from_model(model, classes=CLASSES, preprocessing=Preprocessing(size=16)))
        return made

    @pytest.fixture
    def file(self, members: list[Classifier], tmp_path: Path) -> Path:
        Classifier.from_members(members).save(tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    @pytest.mark.parametrize("runtime", ["torch", "native"])
    def test_one_file_gives_the_mean_of_the_probabilities(
        self, members: list[Classifier], file: Path, runtime: str, tmp_path: Path
    ) -> None:
        if runtime == "native":
            pytest.importorskip("skipnets_engine")
        loaded = load(file, runtime=runtime)
        expected = np.mean([member.probabilities(batch()) for member in members], axis=0)
        np.testing.assert_allclose(loaded.probabilities(batch()), expected, rtol=1e-4, atol=1e-6)
        assert loaded.predict(make_image())[0].probability > 1 / 3
        assert loaded.embed(make_image()).shape == (1, 3 * 32)
        assert loaded.runtime.name == runtime
        loaded.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()

    def test_several_labels_have_the_means_of_probabilities_and_thresholds(
        self, members: list[Classifier], tmp_path: Path
    ) -> None:
        several = [
            Classifier.from_model(
                each.model,
                classes=CLASSES,
                preprocessing=each.preprocessing,
                task="multi-label",
                thresholds=(share, 0.5, 0.5),
            )
            for each, share in zip(members, (0.1, 0.2, 0.6), strict=True)
        ]
        path = tmp_path / "labels.safetensors"
        Classifier.from_members(several).save(path)
        loaded = load(path, runtime="torch")
        expected = np.mean([1 / (1 + np.exp(-each.logits(batch()))) for each in several], axis=0)
        np.testing.assert_allclose(loaded.probabilities(batch()), expected, rtol=1e-5)
        assert loaded.thresholds == pytest.approx((0.3, 0.5, 0.5))
        assert loaded.members[1].task == "multi-label"
        with pytest.raises(
            UserError, match=r"^member 2: must be a classifier, as member 1 is, not a multi-label"
        ):
            Classifier.from_members([members[0], several[1]])

    def test_its_members_are_classifiers(self, members: list[Classifier], file: Path) -> None:
        loaded = load(file)
        assert len(loaded.members) == loaded.ensemble == 3
        for member, original in zip(loaded.members, members, strict=True):
            state = member.model.state_dict()
            assert all(torch.equal(state[name], value) for name, value in original.model.state_dict().items())
        assert members[0].members == (members[0],)
        assert "ensemble of 3 resnet20" in repr(loaded)
        about = describe(file)
        assert about["members"] == 3
        assert about["parameters"] == 3 * sum(p.numel() for p in members[0].model.parameters())
        with pytest.raises(
            UserError, match="is an ensemble of 3 networks: name the run folder of one of its"
        ):
            _ = loaded.model

    def test_its_temperature_is_its_own(self, file: Path) -> None:
        loaded = load(file)
        loaded.temperature = 2.0
        loaded.save(file)
        again = load(file)
        np.testing.assert_allclose(
            again.probabilities(batch()), softmax(again.logits(batch()), 2.0), rtol=1e-6
        )
        assert again.members[0].temperature == 1

    def test_members_must_be_alike(self, members: list[Classifier]) -> None:
        other = Classifier.from_model(
            members[0].model, classes=("x", "y", "z"), preprocessing=members[0].preprocessing
        )
        with pytest.raises(
            UserError, match=r"^member 2: must have the classes of member 1; one of them lacks ant, bee"
        ):
            Classifier.from_members([members[0], other])
        with pytest.raises(UserError, match=r"^members: must be at least one classifier$"):
            Classifier.from_members([])
        with pytest.raises(UserError, match=r"^member 1: must be a single network, not an ensemble of 2$"):
            Classifier.from_members([Classifier.from_members(members[:2])] * 2)
        members[0].temperature = members[1].temperature = 2.0
        with pytest.raises(UserError, match=r"^member 1: must have a temperature of 1, not 2; calibrate"):
            Classifier.from_members(members[:2])

    def test_a_damaged_ensemble_is_refused(self, file: Path) -> None:
        metadata = metadata_of(file)
        for count, message in ((4, "holds 3 networks, not 4"), (0, "members=0"), ("3", "members='3'")):
            rewrite(file, metadata=metadata | {"members": count})
            with pytest.raises(UserError, match=message):
                load(file)
        rewrite(file, metadata=metadata, tensors={"conv.weight": np.zeros(1, np.float32)})
        with pytest.raises(UserError, match=r"the tensor conv\.weight belongs to no network of the ensemble"):
            load(file)


def test_published_weights_bring_their_preprocessing(tmp_path: Path) -> None:
    """The folder is as timm publishes its own, and images become what timm's evaluation makes of them."""
    theirs = timm.create_model("resnet10t.c3_in1k", pretrained=False, num_classes=3)
    timm.models.save_for_hf(theirs, tmp_path / "published", safe_serialization=True)
    model = skipnets.create_model("resnet10t", num_classes=3, weights=tmp_path / "published")
    classifier = Classifier.from_model(model.eval(), classes=["a", "b", "c"])
    assert (classifier.preprocessing.size, classifier.preprocessing.fit) == ((176, 176), "crop")
    assert classifier.preprocessing.interpolation == "bicubic"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (210, 260, 3), dtype=np.uint8))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    expected = transform(image)
    np.testing.assert_allclose(classifier.preprocess([image])[0], expected.numpy(), atol=1e-5)
    with torch.no_grad():
        logits = theirs.eval()(expected[None]).numpy()
    np.testing.assert_allclose(
        classifier.logits(classifier.preprocess([image])), logits, rtol=1e-4, atol=1e-5
    )


def test_a_model_without_published_weights_needs_preprocessing() -> None:
    with pytest.raises(UserError, match=r"^preprocessing: must be given"):
        Classifier.from_model(skipnets.create_model("resnet20", num_classes=2), classes=["a", "b"])
