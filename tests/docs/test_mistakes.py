"""The mistakes that from-scratch DenseNets and ResNets make, each with the check that finds it.

docs/guide/mistakes.md shows the parts between the `start` and `end` marks: the mistake and its check. Every
check must fail on the mistake and pass on our models.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from skipnets.classifier import load
from skipnets.models import DenseNet, create_model
from skipnets.models.densenet import BasicDenseLayer, DenseLayer, Transition
from skipnets.models.resnet import PadShortcut
from skipnets.training import TrainConfig, train
from skipnets.training.best_epoch import Resolution, best_row

from .selection import simulate

SMALL = {"growth_rate": 4, "block_config": [2, 2, 2], "num_classes": 5}


def small_densenet(**fields: object) -> DenseNet:
    model = create_model("densenet_bc40_k12", **{**SMALL, **fields})
    assert isinstance(model, DenseNet)
    return model


def fails(check: Callable[..., None], *arguments: object, **fields: object) -> bool:
    try:
        check(*arguments, **fields)
    except AssertionError:
        return True
    return False


# --8<-- [start:plain-list]
class ForgottenLayers(nn.Module):
    def __init__(self, channels: int, growth_rate: int, layers: int) -> None:
        super().__init__()
        self.layers = [  # a plain list: PyTorch does not know these layers
            dense_layer(channels + index * growth_rate, growth_rate) for index in range(layers)
        ]

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = torch.cat([features, layer(features)], dim=1)
        return features


# --8<-- [end:plain-list]
# --8<-- [start:plain-list-check]
def check_parameter_count(block: nn.Module, channels: int, growth_rate: int, layers: int) -> None:
    expected = sum(
        2 * seen + seen * 4 * growth_rate + 2 * 4 * growth_rate + 9 * 4 * growth_rate * growth_rate
        for seen in range(channels, channels + layers * growth_rate, growth_rate)
    )
    assert sum(parameter.numel() for parameter in block.parameters()) == expected


# --8<-- [end:plain-list-check]
def dense_layer(channels: int, growth_rate: int) -> DenseLayer:
    return DenseLayer(channels, growth_rate, 4, norm="batch", proj_drop_rate=0.0, drop_path_rate=0.0)


def test_layers_in_a_plain_list() -> None:
    forgotten = ForgottenLayers(16, 4, 3)
    assert forgotten(torch.randn(2, 16, 8, 8)).shape == (2, 28, 8, 8)  # it runs, so nobody notices
    assert list(forgotten.parameters()) == []
    assert forgotten.state_dict() == {}
    assert fails(check_parameter_count, forgotten, 16, 4, 3)
    block = create_model("densenet121").features.denseblock2
    check_parameter_count(block, 128, 32, 12)
    assert fails(check_parameter_count, block[:11], 128, 32, 12)


# --8<-- [start:stem]
class StemThrownAway(nn.Module):
    def __init__(self, network: DenseNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        self.stem(x)  # computed, and not assigned to anything
        return self.network(x)


# --8<-- [end:stem]
# --8<-- [start:stem-check]
def check_every_parameter_learns(model: nn.Module, size: int = 32) -> None:
    logits = model(torch.randn(4, 3, size, size))
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.any(), f"the gradient of {name} is 0"


# --8<-- [end:stem-check]
def test_a_stem_whose_result_is_thrown_away() -> None:
    model = StemThrownAway(small_densenet())
    with pytest.raises(AssertionError, match=r"stem\.0\.weight has no gradient"):
        check_every_parameter_learns(model)
    for name in ("densenet_bc40_k12", "densenet40_k12", "resnet20"):
        check_every_parameter_learns(create_model(name, block_config=[2, 2, 2]))
    check_every_parameter_learns(create_model("densenet121", block_config=[2, 2, 2, 2]), size=64)


# --8<-- [start:last-transition]
def densenet_with_a_transition_too_many(model: DenseNet) -> DenseNet:
    channels = model.num_features
    model.features.norm5 = Transition(channels, channels // 2, norm="batch")
    model.classifier = nn.Linear(channels // 2, model.num_classes)
    return model


# --8<-- [end:last-transition]
# --8<-- [start:last-transition-check]
def check_last_map(model: DenseNet, size: int = 32) -> None:
    config = model.config
    channels = config.stem_channels
    for number, layers in enumerate(config.block_config, start=1):
        channels += layers * config.growth_rate
        if number < len(config.block_config):
            channels = math.floor(channels * config.compression)
            size //= 2
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, channels, size, size)


# --8<-- [end:last-transition-check]
def test_a_transition_after_the_last_block() -> None:
    wrong = densenet_with_a_transition_too_many(small_densenet())
    assert wrong(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert fails(check_last_map, wrong)
    check_last_map(small_densenet())
    check_last_map(create_model("densenet40_k12", block_config=[2, 3, 4], growth_rate=5))


# --8<-- [start:relu]
def transition_without_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


# --8<-- [end:relu]
# --8<-- [start:relu-check]
def check_convolutions_see_no_negative_values(model: nn.Module, x: Tensor, *, but: str = "") -> None:
    lowest: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name != but:
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: lowest.update({name: float(inputs[0].detach().min())})
            )
    model(x)
    assert lowest
    assert min(lowest.values()) >= 0, lowest


# --8<-- [end:relu-check]
def test_a_transition_without_its_relu() -> None:
    x = torch.randn(4, 16, 8, 8)
    wrong, right = transition_without_relu(16), Transition(16, 8, norm="batch")
    assert wrong(x).shape == right(x).shape
    assert sum(map(torch.numel, wrong.parameters())) == sum(map(torch.numel, right.parameters()))
    assert fails(check_convolutions_see_no_negative_values, wrong, x)
    check_convolutions_see_no_negative_values(right, x)
    for name in ("densenet_bc40_k12", "densenet40_k12"):
        model = create_model(name, block_config=[2, 2, 2])
        images = torch.randn(2, 3, 32, 32)
        check_convolutions_see_no_negative_values(model, images, but="features.conv0")


def test_without_its_relu_a_transition_is_linear() -> None:
    a, b = torch.randn(2, 1, 16, 8, 8)
    wrong, right = transition_without_relu(16).eval(), Transition(16, 8, norm="batch").eval()
    zero = torch.zeros_like(a)
    for transition, is_linear in ((wrong, True), (right, False)):
        together = transition(a + b) + transition(zero)
        assert torch.allclose(together, transition(a) + transition(b), atol=1e-5) is is_linear


# --8<-- [start:padding]
def layer_with_padding_in_the_wrong_place(channels: int, growth_rate: int) -> DenseLayer:
    layer = dense_layer(channels, growth_rate)
    layer.conv1.padding = (1, 1)  # the 1×1 convolution gets a frame of zeros …
    layer.conv2.padding = (0, 0)  # … and the 3×3 convolution takes it off again
    return layer


# --8<-- [end:padding]
# --8<-- [start:padding-check]
def check_convolutions_keep_the_map(model: nn.Module, x: Tensor) -> None:
    sizes: dict[str, tuple[torch.Size, torch.Size]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            module.register_forward_hook(
                lambda _, inputs, output, name=name: sizes.update(
                    {name: (inputs[0].shape[2:], output.shape[2:])}
                )
            )
    model(x)
    assert sizes
    for name, (before, after) in sizes.items():
        assert after == before, f"{name}: {tuple(before)} → {tuple(after)}"


# --8<-- [end:padding-check]
def test_padding_on_a_1x1_convolution() -> None:
    x = torch.randn(4, 16, 8, 8)
    wrong, right = layer_with_padding_in_the_wrong_place(16, 4), dense_layer(16, 4)
    wrong.load_state_dict(right.state_dict(), strict=True)  # same names, same shapes
    assert wrong(x).shape == right(x).shape
    assert not torch.allclose(wrong(x), right(x), atol=0.1)
    with pytest.raises(AssertionError, match=r"conv1: \(8, 8\) → \(10, 10\)"):
        check_convolutions_keep_the_map(wrong, x)
    for model in (right, dense_layer(16, 4), create_model("densenet40_k12"), create_model("resnet20")):
        check_convolutions_keep_the_map(
            model, x if isinstance(model, DenseLayer) else torch.randn(2, 3, 32, 32)
        )


# --8<-- [start:final-norm]
def without_final_norm(model: DenseNet) -> DenseNet:
    model.features.norm5 = nn.Identity()
    return model


# --8<-- [end:final-norm]
# --8<-- [start:final-norm-check]
def check_size_of_the_last_maps_does_not_matter(model: DenseNet) -> None:
    x = torch.randn(4, 3, 32, 32)
    *_, last = [module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        before = model(x)
        last.weight *= 10  # the last layer's k maps become ten times as large
        torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)


# --8<-- [end:final-norm-check]
def test_a_missing_final_norm() -> None:
    assert fails(check_size_of_the_last_maps_does_not_matter, without_final_norm(small_densenet()))
    check_size_of_the_last_maps_does_not_matter(small_densenet())
    check_size_of_the_last_maps_does_not_matter(create_model("densenet40_k12", block_config=[2, 2, 2]))


# --8<-- [start:odd]
class ShortcutThatLosesAChannel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        added = out_channels - in_channels
        self.padding = (0, 0, 0, 0, added // 2, added // 2)  # 7 new channels: 3 in front, 3 behind

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], self.padding)


# --8<-- [end:odd]
# --8<-- [start:odd-check]
def check_shortcut(make: Callable[[int, int], nn.Module]) -> None:
    for in_channels, out_channels in [(16, 32), (7, 14), (5, 8)]:
        for size in (8, 7):
            shortcut = make(in_channels, out_channels)(torch.randn(2, in_channels, size, size))
            assert shortcut.shape == (2, out_channels, (size + 1) // 2, (size + 1) // 2)


# --8<-- [end:odd-check]
def test_a_division_that_loses_the_odd_channel() -> None:
    assert ShortcutThatLosesAChannel(16, 32)(torch.randn(1, 16, 8, 8)).shape[1] == 32  # fine in every paper
    assert ShortcutThatLosesAChannel(7, 14)(torch.randn(1, 7, 8, 8)).shape[1] == 13
    assert fails(check_shortcut, ShortcutThatLosesAChannel)
    check_shortcut(lambda in_channels, out_channels: PadShortcut(in_channels, out_channels, stride=2))
    create_model("resnet20", width=7)(torch.randn(2, 3, 31, 31))


@pytest.mark.parametrize(("growth_rate", "stem_channels"), [(3, 5), (5, 10), (7, 13)])
def test_odd_channels_pass_through_a_densenet(growth_rate: int, stem_channels: int) -> None:
    for bottleneck in (None, 4):
        model = small_densenet(growth_rate=growth_rate, stem_channels=stem_channels, bottleneck=bottleneck)
        check_last_map(model)
        assert model(torch.randn(2, 3, 31, 33)).shape == (2, 5)


def test_an_independent_network_agrees() -> None:
    """What finds all of these at once: the same weights in somebody else's network."""
    theirs = torchvision.models.densenet121(num_classes=5)
    ours = create_model("densenet121", num_classes=5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
        for module in ours.modules():
            if isinstance(module, DenseLayer | BasicDenseLayer):
                module.conv1.padding, module.conv2.padding = (1, 1), (0, 0)
        assert not torch.allclose(ours(x), theirs(x), atol=0.1)


# --8<-- [start:selection-check]
def test_the_best_of_many_epochs_is_optimistic_on_the_images_that_chose_it() -> None:
    found = simulate(epochs=50, images=1000, trials=150)  # every epoch is right with probability 0.9
    assert found.by_test > 0.012  # chosen on test images: 1.2 points too high and more
    assert abs(found.by_validation) < 3 * found.errors[1]  # chosen on validation images: right


# --8<-- [end:selection-check]
def test_the_gain_from_luck_follows_its_closed_form() -> None:
    """K equal epochs' scores scatter by σ = √(E[p(1−p)]/n); the best lies up by K normal draws' maximum."""
    generator = np.random.default_rng(1)
    epochs, images = 20, 2000
    shared = generator.standard_normal(200_000)
    # P(right | how hard the image is), with the simulation's accuracy of 0.9 and likeness of 0.7
    right = torch.special.ndtr(torch.from_numpy((1.2815516 - 0.7**0.5 * shared) / 0.3**0.5)).numpy()
    scatter = math.sqrt(float((right * (1 - right)).mean()) / images)
    maximum = float(generator.standard_normal((20_000, epochs)).max(1).mean())
    found = simulate(epochs=epochs, images=images, trials=200)
    assert found.by_test == pytest.approx(scatter * maximum, abs=4 * found.errors[0])


def write_manifest(
    folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], order: list[int]
) -> Path:
    """A manifest of 60 images, 20 a split; the test labels are dealt out in the order given."""
    path = folder / "images.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for index, image in enumerate(images):
            split = ("train", "val", "test")[index // 20]
            label = labels[40 + order[index - 40]] if split == "test" else labels[index]
            Image.fromarray(image).save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", f"class{label}", split])
    return path


def test_our_training_is_blind_to_the_test_split(tmp_path: Path) -> None:
    """Other test labels, the same model: the test split has no say in the choice of the epoch."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(60) % 2)
    images = (generator.integers(0, 120, (60, 8, 8)) + 60 * labels[:, None, None]).astype(np.uint8)
    weights, scores = [], []
    for name, order in (("first", list(range(20))), ("second", generator.permutation(20).tolist())):
        folder = tmp_path / name
        folder.mkdir()
        config = TrainConfig(
            data=str(write_manifest(folder, images, labels, order)),
            out=folder / "run",
            model="densenet_bc40_k12",
            model_options={"growth_rate": 2, "block_config": [1, 1]},
            epochs=3,
            workers=0,
            accelerator="cpu",
        )
        run = train(config)
        weights.append(load(run.model).model.state_dict())
        scores.append(run.scores["accuracy"])
        best = best_row(run.rows, "accuracy", Resolution(20, 1 / 20))
        assert best is not None
        assert run.best_epoch == best.epoch
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert scores[0] != scores[1]
