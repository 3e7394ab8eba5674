"""Which addresses a webhook may have: none of the operator's own network, unless that is meant."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

NAT64, OWN_NAT64 = map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48"))
"""Prefixes of gateways from IPv6 to IPv4: the common one, and the local one, which older Pythons take for public."""


class PublicResolver(AbstractResolver):
    """Resolves to public addresses only, at the moment of connecting, lest a name be turned to an inner one later."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if not public:
            raise OSError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._resolver.close()


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


def address_trouble(url: str, private: bool) -> str | None:
    """What is wrong with a webhook's address, or None. Literal ones are checked here: no resolver ever sees them."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not private:
        return "url must begin with https://; set private = true for a server of your own network"
    host = (parts.hostname or "").encode("idna").decode()  # as it will be called: other scripts' dots are dots, too
    literal = ":" in host or host.replace(".", "").isdigit()
    if literal and not private and not is_public(host):
        return f"{host} is a private address; set private = true if that is meant"
    return None  # a name, which is looked at when connecting
