"""What the tests of networks share."""

from __future__ import annotations

import pytest


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations divide even small maps into several chunks."""
    from skipnets.ops import chunks

    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
