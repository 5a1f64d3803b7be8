"""Several networks as one runtime."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from skipnets.models import create_model
from skipnets.runtimes.ensemble import EnsembleRuntime, average_label_logits, average_logits
from skipnets.runtimes.torch import TorchRuntime


def runtimes(count: int) -> list[TorchRuntime]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(TorchRuntime(create_model("resnet20", num_classes=3)))
    return made


def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)


def test_probabilities_are_the_mean_of_the_networks() -> None:
    members = runtimes(3)
    expected = np.mean([softmax(member.logits(images()), axis=1) for member in members], axis=0)
    ensemble = EnsembleRuntime(members)
    np.testing.assert_allclose(softmax(ensemble.logits(images()), axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(ensemble.logits(images())), expected, rtol=1e-5)
    assert (ensemble.name, ensemble.input_type, ensemble.device) == ("torch", "float32", "cpu")


def test_features_lie_side_by_side() -> None:
    members = runtimes(2)
    features = EnsembleRuntime(members).embed(images())
    assert features.shape == (4, 128)
    np.testing.assert_array_equal(features[:, 64:], members[1].embed(images()))


def test_logits_of_any_size_are_averaged_without_overflow() -> None:
    averaged = average_logits(np.array([[[1e4, 0.0]], [[0.0, 1e4]]], dtype=np.float32))
    np.testing.assert_allclose(averaged, [[np.log(0.5), np.log(0.5)]], rtol=1e-6)
    alone = np.array([[[2.0, -1.0, 0.5]]], dtype=np.float32)
    np.testing.assert_allclose(softmax(average_logits(alone), axis=1), softmax(alone[0], axis=1), rtol=1e-6)


def test_of_several_labels_the_probability_of_each_is_averaged() -> None:
    members = runtimes(3)
    expected = np.mean([expit(member.logits(images())) for member in members], axis=0)
    ensemble = EnsembleRuntime(members, task="multi-label")
    np.testing.assert_allclose(expit(ensemble.logits(images())), expected, rtol=1e-5)
    averaged = average_label_logits(np.array([[[1e4, -1e4]], [[0.0, -1e4]]], dtype=np.float32))
    np.testing.assert_allclose(expit(averaged), [[0.75, 0.0]], rtol=1e-6)


def test_numbers_are_averaged_as_they_are() -> None:
    members = runtimes(3)
    expected = np.mean([member.logits(images()) for member in members], axis=0)
    np.testing.assert_allclose(
        EnsembleRuntime(members, task="regression").logits(images()), expected, rtol=1e-5, atol=1e-7
    )
