from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.classifiers import CLASSES, make_classifier

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.models.factory import create_model
from skipnets.scaling import TargetScale
from skipnets.training import TrainConfig, train
from skipnets.training.distillation import Teacher, divergence, label_divergence

MakeConfig = Callable[..., TrainConfig]


def test_the_divergence_is_the_closed_form() -> None:
    logits, teacher, t = np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]]), np.array([[0.0, 1.0, 2.0]] * 2), 2.5
    p, q = (np.exp(each / t) / np.exp(each / t).sum(1, keepdims=True) for each in (teacher, logits))
    expected = (p * np.log(p / q)).sum(1).mean()
    assert float(divergence(torch.tensor(logits), torch.tensor(teacher), t)) == pytest.approx(expected)
    assert float(divergence(torch.tensor(teacher), torch.tensor(teacher), t)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_sees_its_own_normalization_and_speaks_in_the_network_s_order() -> None:
    classifier = make_classifier()
    classifier.preprocessing = Preprocessing(size=(16, 20), mean=(0.2, 0.3, 0.4), std=(0.3, 0.2, 0.1))
    ours = Preprocessing(size=(16, 20), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    teacher = Teacher(classifier, classes=CLASSES[::-1], preprocessing=ours, temperature=4, share=0.5)
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    batch = torch.from_numpy(ours.batch([ours.open(image)]))
    expected = classifier.logits(classifier.preprocess([image]))[:, ::-1]
    np.testing.assert_allclose(teacher.outputs(batch).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(teacher.outputs(batch.double()).numpy(), expected, atol=1e-5)
    logits = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    loss = teacher.blended(torch.tensor(2.0), batch, logits)
    kl = divergence(logits, torch.from_numpy(expected.copy()), 4)
    torch.testing.assert_close(loss, 0.5 * 2.0 + 0.5 * 16 * kl)


def test_an_ensemble_teaches_its_mean_probabilities_at_its_own_size() -> None:
    members = [make_classifier(), make_classifier(growth_rate=4)]
    for tensor in members[1].model.parameters():
        tensor.data.mul_(1.1)
    ensemble = Classifier.from_members(members)
    ours = Preprocessing(size=(32, 40))
    teacher = Teacher(ensemble, classes=CLASSES, preprocessing=ours, temperature=1, share=1)
    batch = torch.zeros(2, 3, 32, 40)
    got = teacher.outputs(batch).softmax(1).numpy()
    expected = ensemble.probabilities(np.zeros((2, 3, 16, 20), np.float32))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_another_teacher_is_refused() -> None:
    classifier = make_classifier()
    for classes, preprocessing, message in (
        (
            ("ant", "bee", "dog"),
            Preprocessing(size=16),
            "must have the classes of the images, not others: cat, dog",
        ),
        (CLASSES, Preprocessing(size=16, channels=1), "with channels 1, not 3"),
    ):
        with pytest.raises(UserError, match=f"teacher=the teacher: .*{message}"):
            Teacher(classifier, classes=classes, preprocessing=preprocessing, temperature=1, share=1)


@pytest.mark.parametrize("sides", [(9, 10, 12), (24,)])
def test_a_teacher_of_volumes_or_signals_sees_them_at_its_own_size(sides: tuple[int, ...]) -> None:
    network = create_model(
        "resnet8_w16", dims=len(sides), num_classes=3, in_chans=2, block_config=(1,), width=4
    )
    its = Preprocessing(sides, channels=2, fit="stretch", mean=(0.2, 0.3), std=(0.3, 0.2), window=(0, 9))
    ours = Preprocessing([side + 7 for side in sides], channels=2, fit="stretch", window=(0, 9))
    classifier = Classifier.from_model(network, classes=CLASSES, preprocessing=its)
    teacher = Teacher(classifier, classes=CLASSES[::-1], preprocessing=ours, temperature=4, share=0.5)
    volume = np.random.default_rng(0).uniform(0, 9, (*ours.size, 2))
    expected = classifier.logits(classifier.preprocess([volume]))[:, ::-1]
    batch = torch.from_numpy(ours.batch([volume]))
    np.testing.assert_allclose(teacher.outputs(batch).numpy(), expected, atol=1e-5)


def test_a_teacher_of_other_axes_or_resolutions_is_refused() -> None:
    classifier = make_classifier()
    for preprocessing, message in (
        (Preprocessing((8, 8, 8)), "must take volumes, as the run does, not images"),
        (Preprocessing((8,)), "must take signals, as the run does, not images"),
        (Preprocessing(8, fit="center"), r"must have size \(8, 8\), not \(16, 20\), as fit=center keeps"),
    ):
        with pytest.raises(UserError, match=f"teacher=the teacher: {message}"):
            Teacher(classifier, classes=CLASSES, preprocessing=preprocessing, temperature=1, share=1)


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_a_teacher_of_another_task_is_refused(task: Any) -> None:
    """Its logits are of sigmoids, or numbers: a softmax of them means nothing."""
    single = make_classifier()
    scales = [TargetScale(mean=0.0, std=1.0)] * len(CLASSES) if task == "regression" else None
    classifier = Classifier.from_model(
        single.model, classes=CLASSES, preprocessing=single.preprocessing, task=task, scales=scales
    )
    with pytest.raises(UserError, match="teacher=the teacher: must have one class an image"):
        Teacher(classifier, classes=CLASSES, preprocessing=classifier.preprocessing, temperature=1, share=1)


def test_the_divergence_of_labels_is_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    logits, teacher, t = generator.normal(0, 3, (4, 3)), generator.normal(0, 3, (4, 3)), 2.5
    p, q = (1 / (1 + np.exp(-each / t)) for each in (teacher, logits))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(label_divergence(torch.tensor(logits), torch.tensor(teacher), t)) == pytest.approx(
        expected, rel=1e-5
    )
    extreme = torch.tensor([[200.0, -200.0]])
    assert float(label_divergence(extreme, -extreme, 1)) == pytest.approx(200)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_a_teacher_of_labels_or_numbers_speaks_in_the_network_s_order(task: Any, members: int) -> None:
    """Numbers also in the network's scales, which are of other training images."""
    its = [TargetScale(mean=float(index), std=1.0 + index) for index in range(3)]
    networks = [make_classifier() for _ in range(members)]
    for tensor in networks[-1].model.parameters():
        tensor.data.mul_(1.2)
    singles = [
        Classifier.from_model(
            made.model,
            classes=CLASSES,
            preprocessing=Preprocessing(size=(16, 20)),
            task=task,
            scales=its if task == "regression" else None,
        )
        for made in networks
    ]
    classifier = singles[0] if members == 1 else Classifier.from_members(singles)
    ours = [TargetScale(mean=-1.0, std=2.0), TargetScale(mean=3.0, std=0.5), TargetScale(mean=0.0, std=4.0)]
    teacher = Teacher(
        classifier,
        classes=CLASSES[::-1],
        preprocessing=classifier.preprocessing,
        temperature=2,
        share=0.25,
        task=task,
        scales=ours if task == "regression" else None,
    )
    batch = np.random.default_rng(0).normal(0, 1, (4, 3, 16, 20)).astype(np.float32)
    images, outputs = torch.from_numpy(batch), torch.randn(4, 3)
    if task == "multi-label":
        expected = torch.from_numpy(classifier.logits(batch)[:, ::-1].copy())
        loss = teacher.blended(torch.tensor(2.0), images, outputs)
        taught = 4 * label_divergence(outputs, expected, 2)
    else:
        values = classifier.values(batch)[:, ::-1]
        expected = torch.from_numpy((values - [-1.0, 3.0, 0.0]) / [2.0, 0.5, 4.0]).float()
        loss = teacher.blended(torch.tensor(2.0), images, outputs, torch.nn.functional.l1_loss)
        taught = (outputs - expected).abs().mean()
    torch.testing.assert_close(teacher.outputs(images), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, 0.75 * 2.0 + 0.25 * taught, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        UserError, match=rf"must have the {'labels' if task == 'multi-label' else 'targets'} of"
    ):
        Teacher(
            classifier,
            classes=("a",),
            preprocessing=classifier.preprocessing,
            temperature=1,
            share=1,
            task=task,
        )


def test_a_run_learns_from_a_teacher(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("resnet8_w16", num_classes=3, in_chans=1, block_config=(1,))
    preprocessing = Preprocessing(size=8, channels=1)
    teacher = Classifier.from_model(model, classes=["2", "1", "0"], preprocessing=preprocessing)
    teacher.save(tmp_path / "teacher.safetensors")
    config = tiny(epochs=1, loss="focal", erasing=0.3, augmentation="rand", teacher_share=1.0)
    with pytest.raises(UserError, match=r"teacher: .*none.safetensors does not exist"):
        train(dataclasses.replace(config, teacher=str(tmp_path / "none.safetensors")))
    assert not config.out.exists()
    losses: list[tuple[float, int]] = []
    blended = Teacher.blended

    def recorded(
        self: Teacher, loss: torch.Tensor, images: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        value = 16 * divergence(logits, self.outputs(images), 4)
        losses.append((float(value.detach()), len(images)))
        return blended(self, loss, images, logits)

    monkeypatch.setattr(Teacher, "blended", recorded)
    run = train(dataclasses.replace(config, teacher=str(tmp_path / "teacher.safetensors")))
    values, counts = np.array(losses).T
    assert run.rows[0].train_loss == pytest.approx((values * counts).sum() / counts.sum(), rel=1e-4)
    assert (run.config.loss, run.config.erasing, run.config.augmentation) == ("focal", 0.3, "rand")
