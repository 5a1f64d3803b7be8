"""What the engine's tests share."""

from __future__ import annotations

import pytest

skipnets_engine = pytest.importorskip(
    "skipnets_engine", reason="needs the native engine: pip install ./engine"
)


@pytest.fixture(params=skipnets_engine.isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that this machine runs."""
    return str(request.param)
