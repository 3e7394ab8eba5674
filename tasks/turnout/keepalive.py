"""TCP keepalive: NATs and firewalls forget a connection that is silent for a minute or more, without notice."""

from __future__ import annotations

import socket

_OPTIONS = {"TCP_KEEPIDLE": 25, "TCP_KEEPALIVE": 25, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
KEEPALIVE = {getattr(socket, name): value for name, value in _OPTIONS.items() if hasattr(socket, name)}
"""Options of a TCP socket with SO_KEEPALIVE: the other side is probed after 25 s of silence, because few firewalls
forget sooner, and counts as gone if it doesn't answer for 30 s. Systems have one of the first two names."""
