from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from tests.helpers.own_networks import SqueezeExcite, TinyNet, group_densenet, se_densenet
from torch import Tensor
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

import skipnets
from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.insight.attribution import explain
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import Run, TrainConfig, read_config, resume, train
from skipnets.training.prepare import prepare
from skipnets.training.supplied import Supplied, custom_config, with_own_model

MakeConfig = Callable[..., TrainConfig]
TINY = "tests.helpers.own_networks:TinyNet"
SE = "tests.helpers.own_networks:se_densenet"


def own(tiny: MakeConfig, **changes: Any) -> TrainConfig:
    return tiny(**({"model": None, "model_options": {}, "epochs": 2} | changes))


class Losses:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return 2 * F.cross_entropy(logits, targets)


class Locked:
    """A loss that holds what cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)


class Steps(pl.Callback):
    """Counts steps; ends the process's training after some."""

    def __init__(self, last: int | None = None) -> None:
        self.steps, self.last = 0, last

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.last:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def trained(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a network that is imported, with a loss and a metric of the program."""
    config = TrainConfig(
        data=str(digits_folder),
        out=tmp_path_factory.mktemp("own") / "run",
        epochs=2,
        batch_size=16,
        workers=0,
        accelerator="cpu",
        augmentation="none",
    )
    loss, steps = Losses(), Steps()
    run = train(
        config,
        model=functools.partial(TinyNet, width=6),
        loss=loss,
        metrics={"f1": MulticlassF1Score(3)},
        callbacks=[steps],
    )
    assert loss.calls == steps.steps == 2 * 6
    return run


def test_a_file_names_the_import_and_does_not_run_it(trained: Run) -> None:
    architecture = read_model_file(trained.model).metadata["architecture"]
    assert architecture["import_path"] == TINY
    assert architecture["arguments"] == {"width": 6, "num_classes": 3, "in_chans": 1}
    with pytest.raises(UserError, match=f'its network is {TINY}, .* trust="{TINY}"'):
        skipnets.load(trained)
    with pytest.raises(UserError, match="which os:system is not"):
        skipnets.load(trained, trust="os:system")


def test_the_weights_are_those_of_the_module_under_its_own_names(trained: Run) -> None:
    module = TinyNet(3, 1, width=6)
    tensors = read_model_file(trained.model).tensors()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    classifier = skipnets.load(trained, trust=TINY)
    images = [np.full((8, 8), value, np.uint8) for value in (0, 100, 255)]
    batch = classifier.preprocess(images)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(classifier.logits(batch), expected, atol=1e-6)
    handed = TinyNet(3, 1, width=6)
    again = skipnets.load(trained, model=handed)
    np.testing.assert_array_equal(again.logits(batch), classifier.logits(batch))
    assert again.model.network is handed  # type: ignore[attr-defined]
    assert classifier.embed(images).shape == (3, 12)


def test_a_metric_of_the_program_is_in_the_table(trained: Run) -> None:
    classifier = skipnets.load(trained, trust=TINY)
    config = trained.config
    dataset = open_dataset(config.data, splits=trained.splits).split("val")
    found = classifier.logits(classifier.preprocess([dataset.source(i) for i in range(len(dataset))]))  # type: ignore[list-item]
    expected = f1_score(dataset.labels, found.argmax(1), average="macro")
    row = trained.rows[trained.best_epoch - 1]
    assert row.further["val_f1"] == pytest.approx(expected, abs=1e-5)
    assert "val_f1" in trained.metrics.read_text().splitlines()[0]


def test_grad_cam_of_a_named_layer(trained: Run) -> None:
    classifier = skipnets.load(trained, trust=TINY)
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    (explanation,) = next(explain(classifier, [image], stage="body.2"))
    network = classifier.model.network  # type: ignore[attr-defined]
    maps = []
    handle = network.body[2].register_forward_hook(lambda _m, _i, output: maps.append(output))
    logits = network(torch.from_numpy(classifier.preprocess([image])))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, classifier.classes.index(explanation.label)], maps[0])
    expected = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1)[0].detach().numpy()
    np.testing.assert_allclose(explanation.grid, expected, atol=1e-6)
    (auto,) = next(explain(classifier, [image]))
    assert auto.stage == "body.2"  # the last of the finest maps: none has 12 values
    with pytest.raises(UserError, match=r"stage=head: must be auto or one of body.0, "):
        explain(classifier, [image], stage="head")


def test_a_resumed_run_is_the_run(trained: Run, tmp_path: Path) -> None:
    config = read_config(trained.config_file, out=tmp_path / "run")
    with pytest.raises(UserError, match="loss: the run was given one by its program; give it again"):
        train(config, trust=TINY)
    supplied: dict[str, Any] = {"loss": Losses(), "metrics": {"f1": MulticlassF1Score(3)}}
    with pytest.raises(UserError, match=r"its network is tests\.helpers"):
        train(config, **supplied)
    assert not config.out.exists()
    with pytest.raises(KeyboardInterrupt):
        train(config, trust=TINY, callbacks=[Steps(last=9)], **supplied)
    with pytest.raises(UserError, match="loss: the run was given one"):
        resume(config.out, trust=TINY)
    run = resume(config.out, trust=TINY, **supplied)
    assert run.model.exists()
    before, after = (read_model_file(each.model).tensors() for each in (trained, run))
    assert {name: array.tobytes() for name, array in before.items()} == {
        name: array.tobytes() for name, array in after.items()
    }


def test_a_module_gets_the_best_weights(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture, digits_folder: Path
) -> None:
    class Local(TinyNet):
        pass

    images = open_dataset(digits_folder)
    samples = [(images.open(index), str(images.labels[index])) for index in range(len(images))]
    module = Local(3)
    run = train(own(tiny, epochs=1), model=module, dataset=samples)
    tensors = read_model_file(run.model).tensors()
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensor.cpu().numpy(), tensors[name])
    assert run.config.supplied == ("model", "dataset")
    with pytest.raises(UserError, match=r"network Local was made by the program .* model=Local\("):
        skipnets.load(run)
    assert skipnets.load(run, model=Local(3)).classes == ("0", "1", "2")


def test_a_modified_densenet_is_saved_by_what_makes_it(tiny: MakeConfig) -> None:
    made = se_densenet(3, 1)
    assert any(isinstance(module, SqueezeExcite) for module in made.modules())
    run = train(
        own(tiny, epochs=1),
        model=made,
        architecture={"import": SE, "arguments": {"num_classes": 3, "in_chans": 1}},
    )
    classifier = skipnets.load(run, trust=SE)
    batch = classifier.preprocess([np.zeros((8, 8), np.uint8)])
    with torch.no_grad():
        expected = made.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(classifier.logits(batch), expected, atol=1e-5)
    assert run.config.supplied == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            group_densenet,
            "not applied to network.features.denseblock2.denselayer1, which will run plainly: its norm is a "
            "GroupNorm, not a BatchNorm2d",
        ),
        (TinyNet, "not applied: there are no blocks of this package in CustomModel"),
    ],
)
def test_a_policy_that_is_not_applied_is_said_when_a_training_begins(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture, make: Any, message: str
) -> None:
    with caplog.at_level(logging.WARNING, "skipnets"):
        prepared = prepare(
            own(tiny, block_execution="linear", channels_last=False, recipe="scratch"),
            open_dataset(tiny().data),
            supplied=Supplied(model=make),
        )
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: block_execution=linear: {message}"
    ]
    assert prepared.config.block_execution == "linear"


def test_an_unmodified_model_is_one_of_the_registry(tiny: MakeConfig) -> None:
    model = skipnets.create_model("resnet8_w16", num_classes=3, in_chans=1, block_config=(1,))
    run = train(own(tiny, epochs=1), model=model)
    assert run.config.model == "resnet8_w16"
    assert run.config.model_options == {"block_config": [1]}
    assert skipnets.load(run).architecture["family"] == "resnet"


@pytest.mark.parametrize(
    ("supplied", "options", "message"),
    [
        ({"model": 3}, {}, "model: must be a module or what makes one, not int"),
        (
            {"model": TinyNet(5)},
            {},
            r"must return an output for each of the 3 classes, .*, shape \(2, 3\), not \(2, 5\)",
        ),
        ({"model": TinyNet}, {"freeze": 1}, "freeze=1: needs one of the networks"),
        ({"model": TinyNet(3)}, {"weights": "w.pth"}, "weights=w.pth: must be loaded into TinyNet before it"),
        ({"model": TinyNet}, {"weights": "imagenet"}, "weights=imagenet: must be a file for TinyNet"),
        ({"model": TinyNet}, {"model": "resnet18"}, "model=resnet18: must be given once"),
        ({"architecture": {}}, {}, "architecture: must be given with model="),
        (
            {"model": TinyNet(3), "architecture": {"import": "x"}},
            {},
            "import='x' must be package.module:Class",
        ),
        (
            {"model": TinyNet(3), "architecture": {"import": TINY, "arguments": {"num_classes": 4}}},
            {},
            "makes a module with other tensors: head.weight, head.bias",
        ),
        ({"loss": 3}, {}, "loss: must be a function of logits and labels, not int"),
        (
            {"loss": F.cross_entropy},
            {"label_smoothing": 0.1},
            "label_smoothing=0.1: must be given without loss=",
        ),
        ({"metrics": {"f1": f1_score}}, {}, "metrics: f1 must be torchmetrics', not function"),
        (
            {"metrics": {"f1": MulticlassF1Score(5)}},
            {},
            r"metrics: f1 fails on arrays of shapes \(18, 3\) and \(18,\) \(.*number of classes",
        ),
        ({"metrics": [MulticlassF1Score(3)]}, {}, "metrics: must be torchmetrics by name, not list"),
        ({"loss": Locked()}, {"folds": 2}, r"^loss: must be something that copy.deepcopy can copy \(.*lock"),
        ({"loss": Locked()}, {"find_lr": True}, "^loss: must be something that copy.deepcopy can copy"),
        ({"callbacks": [3]}, {}, "callbacks: must be Lightning's, not int"),
        ({"callbacks": 3}, {}, "callbacks: must be Lightning's, not int"),
        ({"logger": 3}, {}, "logger: must be Lightning's"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    tiny: MakeConfig, supplied: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    config = own(tiny, **options)
    with pytest.raises(UserError, match=message):
        train(config, **supplied)
    assert not config.out.exists()


def test_arguments_that_json_cannot_hold_are_said(tiny: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    from skipnets.training.supplied import Supplied, with_own_model

    with caplog.at_level(logging.WARNING, "skipnets"):
        config = with_own_model(own(tiny), Supplied(model=functools.partial(TinyNet, width=object())))
    assert (
        "the arguments of tests.helpers.own_networks:TinyNet are not all names with JSON values"
        in caplog.text
    )
    assert config.model == "TinyNet"


@pytest.mark.slow
def test_a_class_of_a_script_has_no_import(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `__main__` is another program's wherever the file is loaded."""
    script = type("Script", (TinyNet,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Script", script, raising=False)
    config = own(tiny, epochs=1)
    named = with_own_model(config, Supplied(model=script))
    assert named.model == "Script"
    assert "Script cannot be imported again, as it could from a module of its own" in caplog.text
    custom = custom_config(named, Supplied(model=script), classes=3, channels=1)
    assert custom is not None
    assert custom.import_path is None


@pytest.mark.parametrize(
    "name", ["loss", "accuracy", "balanced_accuracy", "average_precision", "auroc", "mae", "r2"]
)
def test_a_metric_is_not_called_like_one_that_runs_measure(tiny: MakeConfig, name: str) -> None:
    """One of another task would be shown instead of the accuracy."""
    message = f"^metrics: {name} must have another name: metrics.csv has a column val_{name} of its own$"
    with pytest.raises(UserError, match=message):
        train(tiny(), metrics={name: MulticlassAUROC(3)})
    assert not tiny().out.exists()


def test_a_module_of_another_width_is_one_line_wherever_it_is_given(trained: Run) -> None:
    with pytest.raises(UserError, match=r"tensor head.bias has shape \(3,\), the architecture needs \(5,\)$"):
        skipnets.load(trained, model=TinyNet(5, 1, width=6))
    gray = skipnets.Preprocessing(size=8, channels=1)
    with pytest.raises(UserError, match=r"TinyNet must return an output for each of the 3 .*\(1, 5\)"):
        skipnets.Classifier.from_model(TinyNet(5), classes=["a", "b", "c"], preprocessing=gray)


def test_folds_train_copies_of_a_module(tiny: MakeConfig) -> None:
    config = own(tiny, epochs=1, folds=2)
    module = TinyNet(3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = train(config, model=module)
    assert skipnets.load(run, model=TinyNet(3)).ensemble == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
