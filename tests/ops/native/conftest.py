"""What the tests of native executors share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from skipnets.ops import native


def isas() -> list[str]:
    if native.unavailable():
        return []
    import skipnets_engine

    return list(skipnets_engine.isas())


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this machine runs."""
    monkeypatch.setenv("SKIPNETS_ENGINE_ISA", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
