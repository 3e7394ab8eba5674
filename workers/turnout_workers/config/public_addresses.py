"""Which addresses a webhook may have: none of the operator's own network, unless that is meant."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

NAT64, OWN_NAT64 = map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48"))
"""Prefixes of gateways from IPv6 to IPv4: the common one, and the local one, which older Pythons take for public."""


def public_socket(address: tuple[Any, ...]) -> socket.socket:
    """For aiohttp, which asks for each address right before it connects there: a name can't be turned to an inner one
    later, nor be one in any spelling."""
    if not is_public(host := address[4][0]):
        raise OSError(f"{host} is no public address")
    return socket.socket(*address[:3])


def is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # A gateway on the way forwards to the IPv4 address within.
        within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.sixtofour
        return found.is_global and found not in OWN_NAT64 and (within is None or within.is_global)
    return found.is_global


def address_problem(url: str, private: bool) -> str | None:
    """What is wrong with a webhook's address, or None, as far as it can be known before connecting."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not private:
        return "url must begin with https://; set private = true for a server of your own network"
    try:
        host = str(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:
        return None  # a name
    return None if private or is_public(host) else f"{host} is a private address; set private = true if that is meant"
