"""MixUp and CutMix with several labels an image and with numbers, against the sums written out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers.made import made_config as config
from tests.helpers.made import made_dataset as dataset
from torchvision.transforms import v2

from skipnets.classifier import Classifier
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.training import Run, train
from skipnets.training.batches import read_batch
from skipnets.training.mixing import MixedTargets, TargetMix, make_mix, make_target_mix, mix_batch
from skipnets.training.multi_label import AsymmetricLoss, LabelLoss, MultiLabelTask
from skipnets.training.prepare import prepare
from skipnets.training.regression import NumberLoss, RegressionTask, target_scales

NAN = float("nan")


@pytest.mark.parametrize(
    ("alphas", "kind"),
    [((0, 0), None), ((0.2, 0), v2.MixUp), ((0, 1.0), v2.CutMix), ((0.2, 1.0), v2.RandomChoice)],
)
def test_what_mixes(alphas: tuple[float, float], kind: type | None) -> None:
    mix = make_mix(3, mixup=alphas[0], cutmix=alphas[1])
    if kind is None:
        assert mix is None
        assert make_target_mix(mixup=0, cutmix=0) is None
        return
    assert type(mix) is kind
    images, targets = mix(torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert (images.shape, targets.shape) == ((6, 3, 8, 8), (6, 3))
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_volumes_are_mixed_as_each_of_their_slices_is(method: str) -> None:
    mix = make_mix(3, **{"mixup": 0.0, "cutmix": 0.0, method: 1.0})
    assert mix is not None
    volumes, labels = torch.rand(4, 2, 3, 8, 6), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    found, shares = mix_batch(mix, volumes, labels)
    assert type(found) is torch.Tensor
    for depth in range(3):
        torch.manual_seed(1)
        expected, expected_shares = mix(volumes[:, :, depth], labels)
        assert torch.equal(found[:, :, depth], expected)
        assert torch.equal(shares, expected_shares)
    mixed, targets = make_target_mix(mixup=0.5, cutmix=0.0)(volumes, torch.eye(4))  # type: ignore[misc]
    assert mixed.shape == volumes.shape
    assert targets.first.shape == (4, 4)


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_image_is_mixed_of_the_two_whose_targets_it_has(method: str, count: int) -> None:
    """The images are gray levels, and so are the targets: a mixture tells what it is made of."""
    torch.manual_seed(count)
    mix = make_target_mix(**{"mixup": 0.0, "cutmix": 0.0, method: 1.0})
    assert mix is not None
    levels = torch.arange(1.0, count + 1)
    images, mixed = mix(levels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone(), levels[:, None])
    share = float(mixed.share)
    expected = share * mixed.first + (1 - share) * mixed.second
    torch.testing.assert_close(images.mean((1, 2, 3)), expected[:, 0])
    assert 0 <= share <= 1
    if method == "cutmix":
        for image, first, second in zip(images, mixed.first, mixed.second, strict=True):
            assert set(image.flatten().tolist()) <= {float(first), float(second)}
    if count > 1:
        assert (mixed.first != mixed.second).all()


def some_mixture() -> MixedTargets:
    first = torch.tensor([[1, 0, NAN], [0, NAN, 1], [1, 1, NAN], [NAN, 0, 0]], dtype=torch.float64)
    return MixedTargets(first=first, second=first.roll(1, 0), share=torch.tensor(0.7))


@pytest.mark.parametrize(
    "loss", [LabelLoss(smoothing=0.1), LabelLoss(torch.tensor([2.0, 1, 3])), AsymmetricLoss()]
)
def test_a_label_counts_as_much_as_the_images_that_it_is_known_of(loss: Any) -> None:
    torch.manual_seed(0)
    logits, mixed = torch.randn(4, 3, dtype=torch.float64), some_mixture()
    total, weight = 0.0, 0.0
    for row in range(4):
        for label in range(3):
            for share, targets in ((0.7, mixed.first), (0.3, mixed.second)):
                if torch.isfinite(targets[row, label]):
                    alone = torch.full((4, 3), NAN, dtype=torch.float64)
                    alone[row, label] = targets[row, label]
                    total += share * float(loss(logits, alone))
                    weight += share
    assert weight == pytest.approx(8)  # as many as are known of the batch
    assert float(mixed.loss(loss, logits)) == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_numbers_are_interpolated_where_both_are_known(name: str) -> None:
    torch.manual_seed(0)
    outputs = 2 * torch.randn(4, 3, dtype=torch.float64)
    first = torch.tensor([[1.5, -2, NAN], [0.3, NAN, 1], [-1, 1, NAN], [NAN, 0.2, 4]], dtype=torch.float64)
    mixed = MixedTargets(first=first, second=first.roll(1, 0), share=torch.tensor(0.7))
    of_each = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}[name]
    total = 0.0
    for output, one, other in zip(outputs.flatten(), first.flatten(), mixed.second.flatten(), strict=True):
        if torch.isfinite(one) and torch.isfinite(other):
            total += float(of_each(output, 0.7 * one + 0.3 * other))
        elif torch.isfinite(one):
            total += 0.7 * float(of_each(output, one))
        elif torch.isfinite(other):
            total += 0.3 * float(of_each(output, other))
    value = mixed.interpolated().loss(NumberLoss(name), outputs)
    assert float(value) == pytest.approx(total / 8, rel=1e-6)


def test_what_people_are_shown_of_a_mixture() -> None:
    mixed = some_mixture()
    torch.testing.assert_close(mixed.shares[0], torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(mixed.known[0], torch.tensor([1, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(mixed.known[1], torch.tensor([0.3, 0, 1], dtype=torch.float64))
    assert mixed.known[3].isnan().sum() == 0
    torch.testing.assert_close(mixed.larger, mixed.first, equal_nan=True)
    smaller = dataclasses.replace(mixed, share=torch.tensor(0.3))
    torch.testing.assert_close(smaller.larger, mixed.second, equal_nan=True)


class _Fixed(torch.nn.Module):
    """A mix without chance."""

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.7 * images + 0.3 * images.roll(1, 0), 0.7 * labels + 0.3 * labels.roll(1, 0)


def test_a_step_with_several_labels_mixes_images_and_targets(tmp_path: Path) -> None:
    prepared = prepare(config(tmp_path, mixup=1.0, cutmix=1.0, label_smoothing=0.0), dataset("multi-label"))
    task = MultiLabelTask(prepared.model, prepared.config).eval()
    assert isinstance(task.mix, TargetMix)
    assert isinstance(task.mix.mix, v2.RandomChoice)
    task.mix = TargetMix(_Fixed())
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([[1, 0], [NAN, 1], [0, 0], [1, 1.0]])
    images = task.normalize(pixels)
    logits = task(0.7 * images + 0.3 * images.roll(1, 0))
    expected = 0.7 * LabelLoss()(logits, labels) + 0.3 * LabelLoss()(logits, labels.roll(1, 0))
    value = task.training_step((pixels, labels, torch.arange(4)), 0)
    torch.testing.assert_close(value, 2 * expected)  # of all labels of an image
    assert task.training_sums.sums is not None
    right = ((logits >= 0) == (labels == 1))[torch.isfinite(labels)].float().mean()
    torch.testing.assert_close(task.training_sums.sums, torch.stack([4 * expected, 4 * right]).detach())


def test_a_step_with_numbers_mixes_images_and_targets(tmp_path: Path) -> None:
    images_with_numbers = dataset("regression")
    prepared = prepare(config(tmp_path, mixup=0.4), images_with_numbers)
    scales = target_scales(prepared.config, images_with_numbers.split("train"))
    task = RegressionTask(prepared.model, prepared.config, scales).eval()
    assert isinstance(task.mix, TargetMix)
    assert isinstance(task.mix.mix, v2.MixUp)
    task.mix = TargetMix(_Fixed())
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    targets = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, -0.5]])
    images = task.normalize(pixels)
    outputs = task(0.7 * images + 0.3 * images.roll(1, 0))
    expected = F.mse_loss(outputs, 0.7 * targets + 0.3 * targets.roll(1, 0))
    torch.testing.assert_close(task.training_step((pixels, targets, torch.arange(3)), 0), 2 * expected)


@pytest.mark.parametrize("task", ["multi-label", pytest.param("regression", marks=pytest.mark.slow)])
def test_a_run_mixes_looks_for_its_rate_fits_its_head_and_learns_from_a_teacher(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipnets.training.rate_finder.STEPS", 20)
    images = dataset(task)
    settings = config(tmp_path / "run", mixup=5.0, fit_head=True, find_lr=True)
    prepared = prepare(dataclasses.replace(settings, find_lr=False, fit_head=False), images)
    if task == "regression":
        with pytest.raises(UserError, match=r"^fit_head: needs weights with numbers to predict"):
            train(settings, dataset=images)
    scales = target_scales(prepared.config, images.split("train")) if task == "regression" else None
    network = create_model("resnet8_w16", width=4, num_classes=2, in_chans=1)
    with torch.no_grad():
        for _ in range(50):  # until its norms know the images
            network(
                torch.from_numpy(prepared.preprocessing.batch([images.source(index) for index in range(20)]))
            )
    teacher = Classifier.from_model(
        network,
        classes=("b", "a"),
        preprocessing=prepared.preprocessing,
        task=task,
        scales=None if scales is None else scales[::-1],
    )
    teacher.save(tmp_path / "teacher.safetensors")
    path = str(tmp_path / "teacher.safetensors")
    weights = {"weights": path, "channels": 1} if task == "regression" else {}
    run: Run = train(dataclasses.replace(settings, teacher=path, **weights), dataset=images)  # type: ignore[arg-type]
    assert run.config.lr != prepared.config.lr
    assert run.rates.exists()
    assert np.isfinite(run.rows[0].train_loss)
    shown = read_batch(run.batches)
    if task == "multi-label":
        assert any(share < 1 for each in shown for _, share in each.labels)
    else:
        texts = {f"a {value:.4g}" for value in images.labels[:20, 0].tolist()}
        assert not {each.labels[0][0] for each in shown} <= texts
