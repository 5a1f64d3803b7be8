"""What a network without a graph does with an image, call by call of its modules, seen by running it.

Shapes: N batch, C channels, H height, W width; of signals (N, C, L), of volumes (N, C, D, H, W).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge, saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from skipnets.errors import UserError, one_line
from skipnets.models.block_execution import set_block_execution
from skipnets.models.modes import copied, sharing_tensors
from skipnets.models.operations import Shape

__all__ = ["INPUT", "Call", "Connection", "connections", "module_macs", "record_calls"]

INPUT = -1
"""The place of the network's input, as the source of a connection."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Call:
    """One call of a module, for one image.

    Attributes:
        path: Path of the module in the network; "" for the network itself.
        module: The module; its tensors are the network's.
        depth: How many calls it is inside of.
        parts: Whether other modules were called inside.
        input: Shape of the first tensor that it is given, without the batch; () without any.
        output: Shape of the first tensor that it returns.
        macs: Multiply-accumulates of convolutions, linear layers and other products of matrices.
        kept: Bytes that autograd saves in training, unless for an earlier call already.
        parameters: Number of parameters, each counted where it is registered, in the first call.
        read: Steps of the autograd graph that made its inputs.
        made: Those that made its outputs.
    """

    path: str
    module: nn.Module
    depth: int
    parts: bool = False
    input: Shape = ()
    output: Shape = ()
    macs: int = 0
    kept: int = 0
    parameters: int = 0
    read: tuple[Node, ...] = ()
    made: tuple[Node, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """Features that a call, or the network's output, gets from an earlier one.

    Attributes:
        source: Place of the earlier call, or `INPUT`.
        target: Place of the call; one after the last is the network's output.
        how: What they are combined with others by: "addition", "concatenation" or "product"; "" for nothing.
    """

    source: int
    target: int
    how: str


def record_calls(network: nn.Module, shape: Sequence[int]) -> list[Call]:
    """Run a network in eval mode, and list the calls of its modules in order, each before those inside.

    The network itself comes first. Copies are run: neither its mode nor its statistics change.

    Args:
        network: Blocks of this package in it run plainly.
        shape: (C, H, W) of an image.

    Raises:
        UserError: If it fails on such images.
    """
    own = sharing_tensors(network).eval()
    set_block_execution(own, "plain", warn=False)
    images = _images(network, (1, *shape)).requires_grad_()
    recorder, flops = _Recorder(own), FlopCounterMode(display=False)
    # Gradients are on, without which attention takes a fused path that the counter does not know.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), flops, recorder.recording(flops):
        _run(own, images)
    calls = recorder.calls
    _count_parameters(calls, own)
    kept = _kept_bytes(network, shape)
    seen: dict[str, int] = {}
    for call in calls:
        number = seen.get(call.path, 0)
        call.kept = kept.get((call.path, number), 0)
        seen[call.path] = number + 1
    return calls


def module_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of a network's convolutions and products of matrices for one image.

    Args:
        network: Is not changed.
        shape: (C, H, W) of an image.

    Raises:
        UserError: If it fails on such images.
    """
    own, flops = sharing_tensors(network).eval(), FlopCounterMode(display=False)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), flops:
        _run(own, _images(network, (1, *shape)))
    return flops.get_total_flops() // 2


def connections(network: Call, calls: Sequence[Call]) -> list[Connection]:
    """Which of some calls get features from which, by the autograd graph of the pass that was recorded.

    Args:
        network: The call that they are all inside of.
        calls: In order, none inside another; together all that compute anything.
    """
    places: dict[Node, list[int]] = {}
    for place, call in [(INPUT, network), *enumerate(calls)]:
        for node in network.read if place == INPUT else call.made:
            places.setdefault(node, []).append(place)
    reads = [*(call.read for call in calls), network.made]
    return [
        Connection(source=source, target=target, how=how)
        for target, read in enumerate(reads)
        for source, how in sorted(_sources(read, places, before=target).items())
    ]


def _sources(read: Sequence[Node], places: dict[Node, list[int]], *, before: int) -> dict[int, str]:
    """The places of the nearest earlier calls behind some steps, and how what they made was combined."""
    found: dict[int, str] = {}
    seen: set[Node] = set()
    pending = [(node, "") for node in reversed(read)]
    while pending:
        node, how = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        # What an identity returns was made by an earlier call as well: the latest one counts.
        if earlier := [place for place in places.get(node, ()) if place < before]:
            found.setdefault(earlier[-1], how)
            continue
        how = _COMBINED.get(node.name().partition("Backward")[0], how)
        pending += [(inner, how) for inner, _ in node.next_functions if inner is not None]
    return found


_COMBINED = {"Add": "addition", "Cat": "concatenation", "Stack": "concatenation", "Mul": "product"}


class _Recorder:
    """Hooks on all modules of a network, which list their calls."""

    def __init__(self, network: nn.Module) -> None:
        self.calls: list[Call] = []
        self.open: list[Call] = []
        self._network = network
        self._paths = {module: path for path, module in network.named_modules()}
        self._flops: FlopCounterMode | None = None

    @contextmanager
    def recording(self, flops: FlopCounterMode | None = None) -> Iterator[None]:
        """List the calls within; with their compute, shapes and steps of autograd where this is counted."""
        self._flops = flops
        with ExitStack() as hooks:
            for module in self._paths:
                for handle in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave, with_kwargs=True),
                ):
                    hooks.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(path=self._paths[module], module=module, depth=len(self.open))
        if self.open:
            self.open[-1].parts = True
        self.calls.append(call)
        self.open.append(call)
        if self._flops is not None:
            given = _tensors((args, kwargs))
            call.input, call.read = _shape(given), _nodes(given)
            call.macs = -(self._flops.get_total_flops() // 2)

    def _leave(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        call = self.open.pop()
        if self._flops is not None:
            returned = _tensors(output)
            call.output, call.made = _shape(returned), _nodes(returned)
            call.macs += self._flops.get_total_flops() // 2


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _shape(tensors: Sequence[Tensor]) -> Shape:
    """Shape of the first tensor, without the batch of one where it comes first."""
    if not tensors:
        return ()
    shape = tuple(tensors[0].shape)
    return shape[1:] if shape[:1] == (1,) else shape


def _nodes(tensors: Sequence[Tensor]) -> tuple[Node, ...]:
    return tuple(get_gradient_edge(tensor).node for tensor in tensors if tensor.requires_grad)


def _count_parameters(calls: Sequence[Call], network: nn.Module) -> None:
    """Add each parameter to the call of the module that has it and to all around; or of one further out."""
    outer: dict[str, list[Call]] = {}
    around: list[Call] = []
    for call in calls:
        around = [*around[: call.depth], call]
        outer.setdefault(call.path, around)
    for name, parameter in network.named_parameters():
        path = name.rpartition(".")[0]
        while path not in outer:
            path = path.rpartition(".")[0]
        for call in outer[path]:
            call.parameters += parameter.numel()


def _kept_bytes(network: nn.Module, shape: Sequence[int]) -> dict[tuple[str, int], int]:
    """Bytes an image that autograd saves within each call: path and number of the call → bytes."""
    images = _images(network, (2, *shape))  # batch norms do not train on one
    own = copied(network).train()
    set_block_execution(own, "plain", warn=False)
    recorder = _Recorder(own)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*own.parameters(), *own.buffers())}
    held: list[Tensor] = []  # so that no address is used again
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            held.append(tensor)
            for call in recorder.open:
                kept[id(call)] = kept.get(id(call), 0) + storage.nbytes()
        return tensor

    devices = [images.device] if images.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        recorder.recording(),
        saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        _run(own, images)
    result: dict[tuple[str, int], int] = {}
    seen: dict[str, int] = {}
    for call in recorder.calls:
        number = seen.get(call.path, 0)
        result[call.path, number] = kept.get(id(call), 0) // 2
        seen[call.path] = number + 1
    return result


def _images(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """Noise of the network's dtype, where it is."""
    like = next(network.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tuple(shape), generator=generator).to(like.device, like.dtype)


def _run(network: nn.Module, images: Tensor) -> None:
    try:
        network(images)
    except Exception as error:  # a user's forward pass, which may raise anything
        raise UserError(
            f"model: {type(network).__name__} fails on images of shape {tuple(images.shape)} "
            f"({one_line(error)})"
        ) from error
