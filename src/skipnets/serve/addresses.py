"""Addresses of this machine."""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone: all of 127.0.0.0/8, ::1, and localhost.

    Args:
        host: An IP address, with its scope if it has one, or a name; other names are not looked up.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
