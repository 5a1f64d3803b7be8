"""Servers of a classifier of colors, and its export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.helpers.serving import make_colors, ready, served, wait_until

from skipnets.classifier import Classifier
from skipnets.serve import create_app


@pytest.fixture
def colors() -> Classifier:
    return make_colors()


@pytest.fixture
def serving(colors: Classifier) -> Iterator[Callable[..., httpx.Client]]:
    """Start a server of the colors with these options of `create_app`."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> httpx.Client:
            app = create_app(colors, **options)
            client = stack.enter_context(served(app))
            client.app = app  # type: ignore[attr-defined]
            wait_until(ready(app))
            return client

        yield start
        colors.runtime.held.set()  # type: ignore[attr-defined]
