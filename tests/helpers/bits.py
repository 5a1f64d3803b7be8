"""Results of operations that must not depend on who else computes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor


def assert_the_same_bits_in_several_callers(compute: Callable[[], list[Tensor]]) -> None:
    """Callers at the same time share the workers, so that some find fewer than they ask for."""
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        first = compute()
        results: list[list[Tensor]] = []
        callers = [threading.Thread(target=lambda: results.append(compute())) for _ in range(3)]  # noqa: B023
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(results) == 3
        for result in results:
            for own, wanted in zip(result, first, strict=True):
                assert torch.equal(own, wanted)
