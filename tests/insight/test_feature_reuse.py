"""Feature reuse: the weights of each connection, and the share of each branch."""

from __future__ import annotations

import csv
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from skipnets.classifier import Classifier
from skipnets.data.preprocessing import Preprocessing
from skipnets.errors import UserError
from skipnets.insight import DenseReuse, ResidualReuse, reuse, save_reuse
from skipnets.models import create_model
from skipnets.runtimes.precision import HalfPrecisionCheck
from skipnets.runtimes.torch import TorchRuntime


def _classifier(name: str, **fields: object) -> Classifier:
    model = create_model(name, num_classes=3, **fields).eval()
    return Classifier.from_model(model, classes=["a", "b", "c"], preprocessing=Preprocessing(size=16))


def _images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["densenet40_k12", "densenet_bc40_k12"])
def test_weights_that_read_one_source_are_seen_as_such(name: str) -> None:
    """Layer 3 of block 2 reads layer 1 alone; the classifier reads the last layer twice as much."""
    classifier = _classifier(name, block_config=(2, 3), growth_rate=4)
    model = classifier.model
    block = model.features.denseblock2
    before = block.denselayer1.conv1.in_channels
    nn.init.zeros_(block.denselayer3.conv1.weight)
    block.denselayer3.conv1.weight.data[:, before : before + 4] = -0.5
    nn.init.ones_(model.classifier.weight)
    model.classifier.weight.data[:, -4:] = -2
    found = reuse(classifier)
    assert isinstance(found, DenseReuse)
    last = found.blocks[1]
    assert last.sources == ("input", "denselayer1", "denselayer2", "denselayer3")
    assert last.targets == ("denselayer1", "denselayer2", "denselayer3", "classifier")
    weight = block.denselayer3.conv1.weight
    per_map = 0.5 * weight.shape[0] * weight.shape[2] * weight.shape[3]
    np.testing.assert_allclose(last.strength[:, 2], [0, per_map, 0, np.nan])
    np.testing.assert_allclose(last.strength[:, 3], [3, 3, 3, 6])
    np.testing.assert_allclose(last.relative()[:, 3], [0.5, 0.5, 0.5, 1])
    assert found.blocks[0].targets[-1] == "transition1"
    assert np.isnan(last.strength[2, 0])


def test_a_head_on_average_and_maximum_reads_each_map_twice() -> None:
    classifier = _classifier("densenet_bc40_k12", block_config=(2,), growth_rate=4, global_pool="catavgmax")
    weight = classifier.model.classifier.weight
    nn.init.ones_(weight)
    weight.data[:, -4:] = -2  # the maxima of the last layer's maps
    np.testing.assert_allclose(reuse(classifier).blocks[0].strength[:, -1], [6, 6, 9])


def test_colors_span_the_values_that_there_are() -> None:
    found = reuse(_classifier("densenet_bc40_k12", block_config=(2, 2, 2)))
    lowest = min(np.nanmin(block.relative()) for block in found.blocks)
    assert lowest > 0.6  # random weights read all sources about equally
    figure = found.draw()
    (image,) = figure.axes[0].images
    low, high = image.get_clim()
    assert high == 1
    assert 0 <= lowest - low < 0.1
    assert f"colors span {low:.1f} to 1, the range of the values" in figure.texts[1].get_text()


def test_shares_of_branches_are_those_of_hand_made_blocks() -> None:
    """A last norm of 0 leaves nothing of a branch; the shares of the others follow from their own outputs."""
    classifier = _classifier("resnet20", block_config=(2, 1, 1))
    model = classifier.model
    nn.init.zeros_(model.layer1[0].bn2.weight)
    found = reuse(classifier, _images(5))
    assert isinstance(found, ResidualReuse)
    assert [(block.block, block.shortcut) for block in found.blocks] == [
        ("layer1.0", "identity"), ("layer1.1", "identity"), ("layer2.0", "pad"), ("layer3.0", "pad"),
    ]  # fmt: skip
    assert found.blocks[0].share == 0
    with torch.no_grad():
        x = model.relu(model.bn1(model.conv1(torch.from_numpy(classifier.preprocess(_images(5))))))
        x = model.layer1[0](x)
        block = model.layer1[1]
        branch = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(x)))))
    expected = branch.abs().mean() / (branch.abs().mean() + x.abs().mean())
    assert found.blocks[1].share == pytest.approx(float(expected), rel=1e-5)
    assert not model.layer1[0].drop_path._forward_hooks


def _see_mirrored(classifier: Classifier, _monkeypatch: pytest.MonkeyPatch) -> None:
    classifier.tta = "flip"


def _compare_half_precision(classifier: Classifier, _monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a second pass over the first images."""
    assert isinstance(classifier.runtime, TorchRuntime)
    classifier.runtime._check = HalfPrecisionCheck("bf16-mixed")


def _predict_meanwhile(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another thread may with the same network."""
    prepare = Preprocessing.__call__

    def meanwhile(self: Preprocessing, image: np.ndarray) -> np.ndarray:
        classifier.model(torch.ones(1, 3, 16, 16))
        return prepare(self, image)

    monkeypatch.setattr(Preprocessing, "__call__", meanwhile)


@pytest.mark.parametrize("change", [_see_mirrored, _compare_half_precision, _predict_meanwhile])
def test_every_image_counts_once(
    change: Callable[[Classifier, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = _classifier("resnet20", block_config=(2, 1, 1))
    model, images = classifier.model, _images(20)
    expected: dict[str, float] = {}
    watched = (("shortcut_size", model.layer1[0]), ("branch", model.layer1[1].bn2))
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: expected.update({name: float(output.abs().mean())})
        )
        for name, module in watched
    ]
    with torch.no_grad():
        model(torch.from_numpy(classifier.preprocess(images)))
    for handle in handles:
        handle.remove()
    change(classifier, monkeypatch)
    found = reuse(classifier, images)
    assert isinstance(found, ResidualReuse)
    assert {name: getattr(found.blocks[1], name) for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "resnet20"])
def test_files(tmp_path, name: str) -> None:
    found = reuse(_classifier(name), _images(3))
    drawing, table = save_reuse(found, tmp_path / "reuse.png")
    assert drawing.stat().st_size > 10_000
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(found.rows())) == (9 if name == "resnet20" else 3 * (21 + 7))
    column = "share" if name == "resnet20" else "relative"
    assert all(0 <= float(row[column]) <= 1 for row in rows)


def test_what_cannot_be_read_is_passed_over_and_named(tmp_path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_text("nothing")
    classifier = _classifier("resnet20")
    found = reuse(classifier, [*_images(2), broken])
    assert isinstance(found, ResidualReuse)
    assert found.images == 2
    assert list(found.failures) == [str(broken)]
    assert found.blocks == reuse(classifier, _images(2)).blocks
    with pytest.raises(UserError, match="images: none can be read"):
        reuse(classifier, [broken])


def test_wrong_input(tmp_path) -> None:
    with pytest.raises(
        UserError, match="images: must name at least one, to measure the branches of resnet20"
    ):
        reuse(_classifier("resnet20"))
    with pytest.raises(UserError, match="must end in"):
        save_reuse(reuse(_classifier("densenet_bc40_k12")), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blocks", [(1,), (2, 2, 2), (6, 6, 6)])
def test_nothing_of_the_drawing_is_cut(blocks: tuple[int, ...]) -> None:
    model = create_model("densenet_bc40_k12", block_config=blocks)
    found = reuse(
        Classifier.from_model(model, classes=list("0123456789"), preprocessing=Preprocessing(size=32))
    )
    figure = found.draw()
    inside = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= width
    assert inside.y1 <= height
