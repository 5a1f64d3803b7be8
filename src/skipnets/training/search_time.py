"""How long a run may look for copies among its images."""

from __future__ import annotations

from skipnets.duration import parse_duration
from skipnets.training.auto import LONGEST_DEFAULT
from skipnets.training.config import TrainConfig
from skipnets.training.speed import device_count

_SHARE = 0.1


def copies_within(config: TrainConfig) -> float | None:
    """Seconds that the search for near copies may take: a tenth of the time; None for any number.

    Without a time and epochs, a tenth of the longest time that is chosen then. Processes that train together
    must find the same copies, however fast each of them is.
    """
    if config.epochs is not None or device_count(config.devices, config.accelerator) > 1:
        return None
    return _SHARE * (LONGEST_DEFAULT if config.time is None else parse_duration(config.time))
