from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.helpers.tf32 import products_in_tf32


@pytest.fixture(autouse=True, scope="module")
def exact_products() -> Iterator[None]:
    """A GPU multiplies float32 in float32, too: in TF32 some ReLU's input changes its sign at any size."""
    with products_in_tf32(False):
        yield
