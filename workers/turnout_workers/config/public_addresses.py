"""Which addresses a webhook may have: none in the operator's own network, unless configured."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

NAT64, OWN_NAT64 = map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48"))
"""Prefixes of gateways from IPv6 to IPv4: the common one, and the local one, which older Pythons call public."""


def public_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for aiohttp, which calls this with each address right before connecting. So a name can't be redirected
    to an inner address later, nor spell one."""
    if not is_public(host := address[4][0]):
        raise OSError(f"{host} is not a public address")
    return socket.socket(*address[:3])


def is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # A gateway would forward to the embedded IPv4 address.
        within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.sixtofour
        return found.is_global and found not in OWN_NAT64 and (within is None or within.is_global)
    return found.is_global


def address_problem(url: str, private: bool) -> str | None:
    """What is wrong with a webhook's address, as far as can be known before connecting. None: nothing."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not private:
        return "url must begin with https://; set private = true for a server of your own network"
    try:
        host = str(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:
        return None  # a name
    return None if private or is_public(host) else f"{host} is a private address; set private = true if that is meant"
