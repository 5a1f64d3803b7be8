"""Which passes the fused kernels run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from torch import Tensor


def launched_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each pass from now on, such as "forward" and "backward" of a dense block."""
    from skipnets.ops.triton.launches import Launches

    passes: list[str] = []
    run = Launches.run

    def noting(self: Launches, key: tuple[Hashable, ...], tensors: Sequence[Tensor], build: Any) -> None:
        passes.append(str(key[0]))
        run(self, key, tensors, build)

    monkeypatch.setattr(Launches, "run", noting)
    return passes
