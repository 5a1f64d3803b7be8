"""How far a training is whose number of epochs may have changed on the way."""

from __future__ import annotations

from collections.abc import Sequence


def progress(epoch: float, plan: Sequence[tuple[int, int]]) -> float:
    """The share of a training that is done, 0 to 1, after so many epochs.

    Args:
        epoch: Epochs that are done, with the fraction of the present one.
        plan: Pairs of the epoch after which the number of epochs was decided, and that number, in order: the
            first is (0, epochs). Between them, the share grows evenly.
    """
    done, start, total = 0.0, *plan[0]
    for after, changed in plan[1:]:
        if epoch <= after:
            break
        done += (1 - done) * (after - start) / (total - start)
        start, total = after, changed
    if total <= start:
        return 1.0
    return min(done + (1 - done) * (epoch - start) / (total - start), 1.0)
