"""How long a run may look for copies among its images."""

from __future__ import annotations

from skipnets.duration import parse_duration
from skipnets.training.config import TrainConfig
from skipnets.training.speed import device_count

_SHARE = 0.1


def copies_within(config: TrainConfig) -> float | None:
    """Seconds that the search for near copies may take: a tenth of a given time; None for any number.

    Processes that train together must find the same copies, however fast each of them is.
    """
    if config.time is None or device_count(config.devices, config.accelerator) > 1:
        return None
    return _SHARE * parse_duration(config.time)
