"""Trace networks that are no part of this package, which have no graph to rewrite.

Shapes: N batch, C channels, H height, W width, K classes, F features.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from skipnets.data.preprocessing import Preprocessing
from skipnets.deploy.graph import DeployedEnsemble, DeployedMirrored
from skipnets.description import Task
from skipnets.errors import UserError, one_line
from skipnets.models.custom_model import CustomModel, NoEmbeddingError, logits_and_head_input
from skipnets.models.modes import copied
from skipnets.runtimes.runtime import InputType

__all__ = ["portable", "trace_own"]


class _Normalized(nn.Module):
    """A network that takes pixels 0–255.

    Args:
        network: Takes normalized images.
        mean: Per channel, in units where white is 1.
        std: Per channel, as `mean`.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", mean), ("std", std)):
            numbers = 255 * torch.tensor(values, dtype=torch.float64)
            self.register_buffer(name, numbers.float()[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) pixels, uint8 → what the network returns."""
        outputs: tuple[Tensor, ...] = self.network((images.float() - self.mean) / self.std)
        return outputs


class _LogitsOnly(nn.Module):
    """A network whose features nothing names."""

    def __init__(self, model: CustomModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) → logits (N, K)."""
        return (self.model(images),)


class _WithHeadInput(_LogitsOnly):
    """A network whose features are what its last linear layer reads."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) → logits (N, K) and features (N, F)."""
        logits, features = logits_and_head_input(self.model.network, images, self.model.num_classes)
        assert features is not None
        return logits, features


class _WithEmbedding(_LogitsOnly):
    """A network that gives its features by timm's methods, in a pass of its own."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) → logits (N, K) and features (N, F)."""
        return self.model(images), self.model.embed(images)


def trace_own(
    models: Sequence[CustomModel],
    preprocessing: Preprocessing,
    input_type: InputType,
    *,
    task: Task = "single-label",
    mirrored: bool = False,
) -> ExportedProgram:
    """Trace networks for any number of images of the preprocessing's size.

    Args:
        models: One network, or several whose probabilities or numbers are averaged; they are not changed.
        preprocessing: How an image becomes their input.
        input_type: Input type of the graph.
        task: What the networks' outputs are.
        mirrored: Whether the graph also sees the mirror image of each image.

    Raises:
        UserError: If torch.export cannot.
    """
    name = models[0].config.name
    shape = (2, preprocessing.channels, *preprocessing.size)
    try:
        members = [_with_features(model, shape) for model in models]
        deployed: nn.Module = members[0] if len(members) == 1 else DeployedEnsemble(members, task=task)
        if mirrored:
            deployed = DeployedMirrored(deployed, task=task)
        if input_type == "uint8":
            deployed = _Normalized(deployed, preprocessing.mean, preprocessing.std)
        settings: Any = importlib.import_module("torch.fx.experimental._config")
        # Without the patch, torch.export makes a special case of a single image.
        with settings.patch(backed_size_oblivious=True), _quiet():
            return torch.export.export(
                deployed.eval(),
                (torch.zeros(shape, dtype=getattr(torch, input_type)),),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                strict=False,
            )
    except Exception as error:  # a user's forward pass, which may do anything
        raise UserError(
            f"export: {name} cannot be traced by torch.export for any number of images ({one_line(error, 0)})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what torch.export writes of a network that it cannot trace; the error says it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def portable(program: ExportedProgram) -> ExportedProgram:
    """The same in operations of aten's core, without anything but tensors: what a .pt2 may hold."""
    program = program.run_decompositions()
    for specification in program.graph_signature.input_specs:
        name = specification.target
        is_constant = specification.kind == InputKind.CONSTANT_TENSOR
        if name is not None and (is_constant or specification.persistent is False):
            specification.kind, specification.persistent = InputKind.BUFFER, True
            program.state_dict[name] = program.constants.pop(name)
    return program


def _with_features(model: CustomModel, shape: tuple[int, ...]) -> nn.Module:
    """A copy of a network that also outputs what it embeds an image as, where it does."""
    own = copied(model).cpu().float().eval().requires_grad_(False)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            embedded = own.embed(images)
        except NoEmbeddingError:
            return _LogitsOnly(own)
        _, read = logits_and_head_input(own.network, images, own.num_classes)
    # One pass is enough where both are the same, as in most networks with timm's methods.
    same = read is not None and read.shape == embedded.shape and torch.allclose(read, embedded, atol=1e-6)
    return _WithHeadInput(own) if same else _WithEmbedding(own)
