"""Which addresses are this machine's own."""

from __future__ import annotations

import pytest

from skipnets.serve.addresses import is_loopback


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("127.255.1.2", True),
        ("::1", True),
        ("::ffff:127.0.0.2", True),
        ("::1%lo", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%lo", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_an_address_is_of_this_machine_alone(host: str, own: bool) -> None:
    assert is_loopback(host) is own
