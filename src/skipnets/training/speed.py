"""How fast the device trains a network, measured within a second."""

from __future__ import annotations

import contextlib
import os
import re
import statistics

import torch
import torch.nn.functional as F
from pytorch_lightning.accelerators import AcceleratorRegistry

from skipnets.errors import UserError, near_matches
from skipnets.models.factory import build_model
from skipnets.models.registry import ModelConfig
from skipnets.training import budget
from skipnets.training.config import Precision

# A measurement takes at least this many steps after the first, and then goes on up to this time.
_STEPS, _SECONDS = 2, 0.3
# First a few images are tried; where a whole batch would take longer than this, they must do.
_FEW, _LONG_STEP = 4, 0.5


def training_device(accelerator: str) -> torch.device:
    """The device that an `accelerator` in Lightning's words means here."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


def check_accelerator(accelerator: str) -> None:
    """Check that training can run where it is asked to, before anything slow begins.

    Raises:
        UserError: There is no such accelerator, or it is not available on this machine.
    """
    known = ("auto", "cpu", "gpu", "mps")
    if accelerator not in {*known, *AcceleratorRegistry.available_accelerators()}:
        near = near_matches(accelerator, known)
        raise UserError(f"accelerator={accelerator!r}: must be one of {', '.join(known)}{near}")
    available = {"gpu": torch.cuda.is_available, "cuda": torch.cuda.is_available}
    available["mps"] = torch.backends.mps.is_available
    if accelerator in available and not available[accelerator]():
        raise UserError(
            f"accelerator={accelerator!r}: not available on this machine; auto takes what there is"
        )


def wrong_devices(devices: int | str) -> str | None:
    """What is wrong with `devices`, and what would be right; None where nothing is."""
    if re.fullmatch(r"auto|-1|[1-9]\d*|\d+(,\d+)+,?|\d+,", str(devices)):
        return None
    return f'devices={devices!r}: must be a number of devices, a list such as "0,2", or auto'


def device_count(devices: int | str, accelerator: str) -> int:
    """How many devices train together: `devices` in Lightning's words, or what torchrun gave this process.

    Args:
        devices: A number, a list such as "0,2" or "0,", or auto or -1 for all.
        accelerator: As in `TrainConfig`.

    Raises:
        UserError: `devices` is none of these.
    """
    if complaint := wrong_devices(devices):
        raise UserError(complaint)
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        return world
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part])
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if training_device(accelerator).type == "cuda" else 1
    return int(text)


def seconds_per_image(
    config: ModelConfig,
    *,
    size: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    precision: Precision = "32-true",
    channels_last: bool = True,
) -> float:
    """Seconds that a training image takes on the device: the median of a few whole steps on noise.

    The network is a throwaway one, and random numbers that follow are as if it had never been.

    Args:
        config: Of the network.
        size: Height and width of the images; of volumes the depth, too.
        batch_size: Images of a step.
        device: Where to train.
        precision: Number format, as in `TrainConfig`.
        channels_last: Whether images lie channel by channel within a pixel.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        model = build_model(config).to(memory_format=layout).to(device)
        images = torch.randn(batch_size, config.in_chans, *size, device=device).to(memory_format=layout)
        labels = torch.randint(config.num_classes, (batch_size,), device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, foreach=True)

        def step(count: int) -> float:
            start = budget.clock()
            optimizer.zero_grad(set_to_none=True)
            with _autocast(device, precision):
                loss = F.cross_entropy(model(images[:count]), labels[:count])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device
            return budget.clock() - start

        few = min(_FEW, batch_size)
        try:
            step(few)
            # The shorter of two: other programs make a step longer, and a plan for too few epochs stays.
            seconds = min(step(few), step(few))
        except torch.OutOfMemoryError:
            raise UserError(
                f"the GPU's memory is too small for {few} images of {'×'.join(map(str, size))} in "
                f"{config.name}; take a smaller --size or another --model"
            ) from None
        if seconds * batch_size / few > _LONG_STEP:
            return seconds / few
        try:
            step(batch_size)
            begin = budget.clock()
            steps: list[float] = []
            while len(steps) < _STEPS or budget.clock() - begin < _SECONDS:
                steps.append(step(batch_size))
        except torch.OutOfMemoryError:  # training will say what fits; its blocks may need less, too
            torch.cuda.empty_cache()
            return seconds / few
        return statistics.median(steps) / batch_size


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    formats = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision in formats:
        return torch.autocast(device.type, formats[precision])
    return contextlib.nullcontext()
