"""One step of training and of validation, against plain PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import nn
from torchvision.transforms import v2

from skipnets.data.sources import open_dataset
from skipnets.errors import UserError
from skipnets.runtimes.model_file import read_model_file
from skipnets.training import TrainConfig, train
from skipnets.training.prepare import prepare
from skipnets.training.task import BalancedAccuracy, ClassificationTask, TrainingSums

MakeConfig = Callable[..., TrainConfig]


def test_frozen_stages_keep_weights_and_statistics(tiny: MakeConfig) -> None:
    config = tiny(freeze=2, epochs=1, ema=0.0, block_execution="plain")
    trained = read_model_file(train(config).model).tensors()
    fresh = prepare(config, open_dataset(config.data)).model.state_dict()
    same = {name for name, array in trained.items() if np.array_equal(array, fresh[name].numpy())}
    frozen = {
        name
        for name in fresh
        if name.startswith(("features.conv0", "features.denseblock1", "features.transition1"))
    }
    assert frozen <= same
    assert not {name for name in same - frozen if "conv" in name}


def make_task(tiny: MakeConfig, **changes: Any) -> ClassificationTask:
    prepared = prepare(config := tiny(**changes), open_dataset(config.data))
    return ClassificationTask(prepared.model, prepared.config)


def test_normalizing_is_torchvisions(tiny: MakeConfig) -> None:
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    task = make_task(tiny, channels=3, mean=mean, std=std)
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    expected = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(task.normalize(images), expected)


def test_a_step_and_a_validation_are_plain_pytorch_s(tiny: MakeConfig, monkeypatch) -> None:
    logged: dict[str, torch.Tensor] = {}
    task = make_task(tiny, label_smoothing=0.2)
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: torch.as_tensor(value)}))
    task.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0] * 8 + [1] * 3 + [2])
    batch = (images.expand(-1, task.mean.shape[1], -1, -1), labels, torch.arange(12))

    loss = task.training_step(batch, 0)
    expected = nn.functional.cross_entropy(task(task.normalize(batch[0])), labels, label_smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    again = (batch[0][:5], labels[:5], batch[2][:5])  # a smaller batch counts for its images
    both = (12 * expected.detach() + 5 * task.training_step(again, 1).detach()) / 17
    correct = task(task.normalize(torch.cat([batch[0], again[0]]))).argmax(1) == torch.cat(
        [labels, labels[:5]]
    )

    task.eval()
    for part in (slice(0, 5), slice(5, 12)):  # batches of different sizes
        task.validation_step(tuple(tensor[part] for tensor in batch), 0)
    task.on_validation_epoch_end()
    torch.testing.assert_close(logged["train_loss"], both)
    assert logged["train_accuracy"].item() == pytest.approx(correct.float().mean().item())
    with torch.no_grad():
        logits = task(task.normalize(batch[0]))
    predicted = logits.argmax(1)
    assert logged["val_accuracy"].item() == pytest.approx(accuracy_score(labels, predicted))
    assert logged["val_balanced_accuracy"].item() == pytest.approx(balanced_accuracy_score(labels, predicted))
    torch.testing.assert_close(logged["val_loss"], nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 1], [2], [0, 1, 2, 3]])
def test_balanced_accuracy_is_scikit_learn_s_where_an_absent_class_is_predicted(labels: list[int]) -> None:
    predicted = [0, 3, 1, 1, 2][: len(labels)]
    metric = BalancedAccuracy(4)
    for label, guess in zip(labels, predicted, strict=True):
        metric.update(torch.tensor([guess]), torch.tensor([label]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that y_pred has classes that y_true has not
        assert float(metric.compute()) == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_sums_of_losses_in_half_precision_are_exact() -> None:
    sums = TrainingSums()
    for _ in range(1000):
        sums.add(torch.tensor(16.0, dtype=torch.bfloat16), torch.tensor(7), images=16)
    means = sums.take(lambda total, reduce_op: total)
    assert (means["train_loss"].item(), means["train_accuracy"].item()) == (1.0, 7 / 16)


def test_more_frozen_stages_than_there_are(tiny: MakeConfig) -> None:
    with pytest.raises(UserError, match=r"freeze=4: must be at most 3, the stages"):
        make_task(tiny, freeze=4)


def test_frozen_stages_stay_in_eval_mode(tiny: MakeConfig) -> None:
    task = make_task(tiny, freeze=2).eval().train()
    modes = {name: module.training for name, module in task.model.named_modules()}
    assert not modes["features.denseblock1.denselayer1.norm1"]
    assert modes["features.denseblock2.denselayer1.norm1"]
    fixed = {name for name, parameter in task.model.named_parameters() if not parameter.requires_grad}
    assert fixed == {
        name
        for name, _ in task.model.named_parameters()
        if name.startswith(("features.conv0", "features.denseblock1", "features.transition1"))
    }
