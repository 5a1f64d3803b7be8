"""The walk, against modules that run, torchinfo, FlopCounterMode and autograd's own account."""

from __future__ import annotations

import time

import pytest
import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skipnets.errors import UserError
from skipnets.insight.trace import skeleton, trace
from skipnets.models import build_model, create_model, list_models, model_config

DEEP = {"resnet1202"}  # running it takes seconds even without numbers
ALL = [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in list_models()]


def _usual_size(name: str) -> int:
    return 224 if model_config(name).stem == "imagenet" else 32


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_macs_agree_with_torchinfo_and_the_flop_counter(name: str) -> None:
    model, size = skeleton(model_config(name)), _usual_size(name)
    top = [layer for layer in trace(model, (3, size, size)).layers if layer.depth == 1]
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        model.eval()(torch.empty(1, 3, size, size))
    assert sum(layer.parameters for layer in top) == torchinfo.summary(model, verbose=0).total_params
    assert 2 * sum(layer.macs for layer in top) == counter.get_total_flops()


VARIANTS = [
    ("densenet_bc40_k12", {"block_config": (2, 3)}),
    ("densenet40_k12", {"block_config": (2, 1), "norm": "group"}),
    ("densenet121", {"block_config": (2, 1, 2), "norm": None, "in_chans": 1}),
    ("densenet121", {"block_config": (1, 2), "proj_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.1}),
    ("resnet20", {"block_config": (1, 2, 1)}),
    ("resnet18", {"block_config": (1, 2), "width": 8, "proj_drop_rate": 0.2, "drop_path_rate": 0.3}),
    ("resnet50", {"block_config": (1, 2, 1), "width": 16, "output_stride": 8}),
    ("resnext50_32x4d", {"block_config": (1, 1), "num_classes": 0}),
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_every_module_has_the_shape_that_it_gives_when_run(name: str, fields: dict[str, object]) -> None:
    model = create_model(name, **fields).eval()
    shape = (model.config.in_chans, 37, 44)
    expected: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> object:
        return lambda _module, _inputs, output: expected.__setitem__(path, tuple(output.shape[1:]))

    for path, module in model.named_modules():
        module.register_forward_hook(note(path))
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    outputs = {path: value.shape for path, value in trace(model, shape).outputs.items() if path != "(pool)"}
    assert outputs == {path: given for path, given in expected.items() if path not in ("", "features")}


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_kept_memory_is_what_autograd_saves(name: str, fields: dict[str, object]) -> None:
    model = create_model(name, **fields)
    shape = (model.config.in_chans, 38, 38)
    assert trace(model, shape).kept_bytes(2) == _saved(model, shape)


@pytest.mark.parametrize("name", ["densenet_bc40_k12", "densenet40_k12"])
def test_kept_memory_in_linear_execution(name: str) -> None:
    model = create_model(name, block_config=(3, 2))
    model.set_block_execution("linear")
    expected = trace(skeleton(model.config), (3, 16, 16), execution="linear").kept_bytes(2)
    assert _saved(model, (3, 16, 16)) == pytest.approx(expected, rel=0.01)


def _saved(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes that a forward pass of two images leaves for the backward pass, besides the model itself."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(2, *shape))
    saved = sum(storage.nbytes() for storage in storages.values())
    del output
    return saved


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc40_k12", "resnet18"])
def test_receptive_field_and_position_are_where_gradients_arrive(name: str) -> None:
    """With all weights positive, every pixel of the receptive field has a gradient, and no other."""
    model = build_model(model_config(name, block_config=(1, 1, 1), norm=None)).eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = nn.AvgPool2d(3, stride=2, padding=1).forward  # type: ignore[method-assign]
    path = model.feature_info[-1]["module"]
    x = torch.full((1, 3, 257, 257), 1.0, requires_grad=True)
    maps = model.forward_intermediates(x, [-1], intermediates_only=True)[0]
    row = maps.shape[2] // 2
    maps[0, :, row, row].sum().backward()
    assert x.grad is not None
    touched = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    grid = trace(model, (3, 257, 257)).outputs[path].grid
    assert grid.receptive_field == len(touched)
    assert grid.start + grid.step * row == float(touched.float().mean())


@pytest.mark.parametrize("name", ["densenet264", "densenet_bc250_k24", "resnet1202"])
def test_the_deepest_models_take_under_a_second(name: str) -> None:
    def seconds() -> float:
        start = time.process_time()
        trace(skeleton(model_config(name)), (3, 224, 224))
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 1


def test_wrong_images_are_refused() -> None:
    model = skeleton(model_config("densenet121"))
    with pytest.raises(UserError, match="channels"):
        trace(model, (1, 224, 224))
    with pytest.raises(UserError, match=r"20×224 is too small for densenet121: .* 29×29"):
        trace(model, (3, 20, 224))
