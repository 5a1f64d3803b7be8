from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from skipnets.data.sources import open_dataset
from skipnets.models.factory import create_model
from skipnets.training import TrainConfig
from skipnets.training.prepare import prepare
from skipnets.training.supplied import Supplied
from skipnets.training.whitening import whitening_filters

MakeConfig = Callable[..., TrainConfig]


def test_outputs_of_whitening_filters_are_uncorrelated() -> None:
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(40, 2, 20, 20), 3, stride=1)  # neighbors are alike
    filters = whitening_filters(smooth, 3)
    assert filters.shape == (18, 2, 3, 3)
    outputs = F.conv2d(smooth, filters).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    variance = covariance.diagonal()
    assert ((variance[:-1] - variance[1:]) > -0.02).all()
    assert variance.max() <= 1.05
    assert (covariance - variance.diag()).abs().max() < 0.05


def test_only_the_first_convolution_of_a_new_network_is_changed(tiny: MakeConfig) -> None:
    changes = {"model": "resnet8_w16", "model_options": {"width": 8}, "accelerator": "cpu"}
    config = tiny(**changes)
    dataset = open_dataset(config.data)
    plain = prepare(tiny(**changes, whiten_stem=False), dataset).model
    white = prepare(tiny(**changes, whiten_stem=True), dataset).model
    again = prepare(tiny(**changes, whiten_stem=True), dataset).model
    ours, theirs = white.state_dict(), plain.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["conv1.weight"]
    assert torch.equal(ours["conv1.weight"], again.state_dict()["conv1.weight"])
    filters = ours["conv1.weight"]
    torch.testing.assert_close(filters[4:], -filters[:4])
    lengths = filters.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, theirs["conv1.weight"].flatten(1).norm(dim=1).mean().expand(8))


@pytest.mark.parametrize("recipe", ["auto", "speedrun"])
def test_pretrained_filters_and_those_of_a_program_are_kept(
    recipe: str, tiny: MakeConfig, tmp_path: Path
) -> None:
    config = tiny(recipe=recipe, model=None, model_options={}, epochs=1, channels=1)
    dataset = open_dataset(config.data)
    model = create_model("resnet8_w16", num_classes=3, in_chans=1)
    filters = model.conv1.weight.detach().clone()
    prepared = prepare(config, dataset, supplied=Supplied(model=model))
    assert prepared.model is model
    assert torch.equal(model.conv1.weight, filters)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    tuned = prepare(
        dataclasses.replace(config, model="resnet8_w16", weights=str(tmp_path / "w.pth")), dataset
    )
    assert torch.equal(tuned.model.get_parameter("conv1.weight"), filters)
    again = prepare(tuned.config, dataset)  # as --config run.yaml does, and every fold
    assert torch.equal(again.model.get_parameter("conv1.weight"), filters)
    new = prepare(dataclasses.replace(config, model="resnet8_w16"), dataset)
    assert new.config.whiten_stem


def test_images_smaller_than_the_filters_leave_them_random(
    tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"model": "resnet8_w16", "model_options": {"width": 8}, "accelerator": "cpu", "size": 2}
    dataset = open_dataset(tiny().data)
    plain = prepare(tiny(**changes, whiten_stem=False), dataset).model
    white = prepare(tiny(**changes, whiten_stem=True), dataset).model
    assert torch.equal(plain.conv1.weight, white.conv1.weight)
    assert "whiten_stem: not applied: images of 2×2" in caplog.text


def test_all_families_have_a_first_convolution(tiny: MakeConfig) -> None:
    config = tiny(whiten_stem=True)
    model = prepare(config, open_dataset(config.data)).model
    fresh = create_model("densenet_bc40_k12", block_config=(2, 2), growth_rate=4, num_classes=3, in_chans=1)
    assert model.features.conv0.weight.shape == fresh.features.conv0.weight.shape
    assert torch.equal(model.features.conv0.weight[:4], -model.features.conv0.weight[4:])
