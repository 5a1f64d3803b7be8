"""A network's graph against its torch module, and what autograd saves for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skipnets.models import ModelConfig, build_model, network_graph
from skipnets.models.graph import BlockExecution


def assert_equal_to_the_built_model(config: ModelConfig) -> None:
    """Names, shapes and order of tensors, of modules that run, and of what they give."""
    graph = network_graph(config)
    with torch.device("meta"):
        model = build_model(config)
    built = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    assert list(graph.tensors().items()) == built
    assert graph.parameter_count() == sum(parameter.numel() for parameter in model.parameters())
    assert list(graph.stages) == [path for path, _ in model.named_stages()]
    assert graph.values[graph.features].channels == model.head_hidden_size

    size = tuple(config.smallest_size + more for more in (12, 17, 14)[: config.dims])
    ran = _run(model, (config.in_chans, *size))
    shapes = graph.shapes(size)
    paths = dict(model.named_modules())
    told = [(operation.name, shapes[operation.output]) for operation in graph.operations]
    # A concatenation or addition has the name of the module that contains it, which is no leaf.
    told = [(path, shape) for path, shape in told if path in paths and not _parts(paths[path])]
    last = [
        entry
        for entry, following in zip(told, [*told[1:], ("", ())], strict=True)
        if entry[0] != following[0]
    ]
    assert last == [entry for entry in ran if not _parts(paths[entry[0]]) and _computes(paths[entry[0]])]
    outputs = dict(ran)
    for scope in graph.scopes:
        if scope.kind != "stem":
            assert shapes[graph.operations[scope.stop - 1].output] == outputs[scope.path]
    for path, value in graph.stages.items():
        assert shapes[value] == outputs[path]
    assert shapes[graph.logits] == outputs[""]


def _run(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Path and output shape of every module, in the order in which they end."""
    ran: list[tuple[str, tuple[int, ...]]] = []

    def note(path: str) -> Any:
        return lambda _module, _inputs, output: ran.append((path, tuple(output.shape[1:])))

    for path, module in model.named_modules():
        module.register_forward_hook(note(path))
    with torch.device("meta"), torch.no_grad():
        model.eval()(torch.empty(2, *shape))  # Group norm refuses one value a group.
    return ran


def _parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _computes(module: nn.Module) -> bool:
    """Not an identity, no pooling, nor dropout or stochastic depth of rate 0."""
    if isinstance(module, nn.Identity) or getattr(module, "pool_type", "avg") == "":
        return False
    return getattr(module, "p", 1) > 0


def saved_bytes(config: ModelConfig, execution: BlockExecution, *size: int, batch_size: int = 2) -> int:
    """Bytes that a forward pass leaves for the backward pass, besides the model itself."""
    model = build_model(config)
    model.set_block_execution(execution)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(batch_size, config.in_chans, *size))
    saved = sum(storage.nbytes() for storage in storages.values())
    del output
    return saved
