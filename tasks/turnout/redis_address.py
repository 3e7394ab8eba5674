"""Where Redis is: its address, with the password taken from a file, and clients that find it by Sentinel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff

from turnout.errors import TurnoutError
from turnout.follow_primary import follow
from turnout.keepalive import KEEPALIVE
from turnout.redis_trouble import note_address

SENTINEL_PORT = 26379
SENTINEL_LIMIT_S = 2.0
"""How long one sentinel may take to answer before the next is asked."""
DATABASE = re.compile("/?[0-9]*")
TLS = re.compile(
    "ssl_(ca_certs|ca_path|certfile|keyfile|password)=.+"
    "|ssl_cert_reqs=(required|optional|none)|ssl_check_hostname=(true|false)"
)
"""Options that redis-py and Celery both understand, in the same way."""
KEPT_ALIVE: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
"""Keeps idle connections open, as redis-py does by default from release 8 on."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """`sentinel://[user:password@]host[:port],host[:port]…/service[/database]`: where to ask for the primary.

    User and password are Redis's. The sentinels' own, if they need any: `?username=…&password=…` at the end.
    """

    nodes: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """How a blocking client connects to a sentinel. A silent one isn't asked again, because there are others."""
        limits = {"socket_timeout": SENTINEL_LIMIT_S, "socket_connect_timeout": SENTINEL_LIMIT_S}
        return {**self.sentinel_login, **limits, "retry": redis.retry.Retry(NoBackoff(), 0)}


def sentinels(url: str) -> Sentinels | None:
    """The content of a `sentinel://` address; None for any other. Raises ValueError."""
    if not url.startswith("sentinel://"):
        return None
    _, login, hosts, rest = _split(url)
    parts = urlsplit(rest)
    user, _, password = (unquote(part) for part in login.partition(":"))
    service, _, database = parts.path.strip("/").partition("/")
    options = dict(parse_qsl(parts.query))
    if not service or not (database or "0").isdecimal() or options.keys() - {"username", "password"}:
        raise ValueError(
            "must be sentinel://[user:password@]host[:port],host[:port]/service[/database], with no option but the "
            "sentinels' own ?username=…&password=…; for TLS, use rediss:// and an address that follows the primary"
        )
    redis_login = {"username": user, "password": password}
    return Sentinels(
        nodes=tuple(_node(host) for host in hosts.split(",")),
        service=service,
        database=int(database or 0),
        login={name: value for name, value in redis_login.items() if value},
        sentinel_login=options,
    )


def _split(url: str) -> tuple[str, str, str, str]:
    """The scheme, the login, the hosts, and what follows. By hand, because Python's parser refuses several hosts if one
    is in brackets."""
    scheme, _, rest = url.partition("://")
    location, slash, rest = rest.partition("/")
    login, _, hosts = location.rpartition("@")
    return scheme, login, hosts, slash + rest


def _node(host: str) -> tuple[str, int]:
    with suppress(ValueError):
        node = urlsplit(f"//{host}")
        if node.hostname:
            return node.hostname, node.port or SENTINEL_PORT
    raise ValueError("names a sentinel that is not host[:port]")


def checked(url: str) -> str:
    """The address unchanged, if redis-py and Celery both accept it. Raises ValueError, which doesn't quote it, because
    the wrong part may hold some of a password."""
    if sentinels(url) is not None:
        return url
    try:
        parts = urlsplit(url)
        usable = parts.port != 0 and DATABASE.fullmatch(parts.path) and not parts.fragment
    except ValueError:  # an invalid port
        usable = False
    if not (usable and url.startswith(("redis://", "rediss://"))):
        raise ValueError(
            "must be a redis://, rediss:// or sentinel:// address, with nothing after its host but the number of a "
            "database: redis://user:password@host:6379/0 (in a password, / is written as %2F, and # as %23)"
        )
    if parts.query and not (parts.scheme == "rediss" and all(map(TLS.fullmatch, parts.query.split("&")))):
        raise ValueError(
            "must have only TLS options after its ?, with rediss://: ssl_ca_certs, ssl_ca_path, "
            "ssl_certfile, ssl_keyfile, ssl_password, ssl_cert_reqs (required, optional or none) and "
            "ssl_check_hostname (true or false)"
        )
    return url


def place(url: str) -> str:
    """Server and database, the same for all ways to write an address, and without its login."""
    if (sentinel := sentinels(url)) is not None:
        nodes = ",".join(f"{host}:{port}" for host, port in sorted(sentinel.nodes))
        return f"{nodes}/{sentinel.service}/{sentinel.database}"
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 6379}/{int(parts.path.strip('/') or 0)}"


def connect(url: str, **options: Any) -> redis.Redis:
    """A client whose errors name their Redis. Raises ValueError for an invalid address. `options` are those of
    redis-py's connections."""
    client: redis.Redis = _client(redis, url, options)
    note_address(client.connection_pool, f"{url.partition(':')[0]}://{place(url)}")
    return client


def connect_async(url: str, **options: Any) -> redis.asyncio.Redis:
    """The same for asyncio."""
    client: redis.asyncio.Redis = _client(redis.asyncio, url, options)
    return client


def _client(library: Any, url: str, options: Mapping[str, Any]) -> Any:
    """library: `redis` or `redis.asyncio`, which use the same names here."""
    options = {**KEPT_ALIVE, **options}
    if (sentinel := sentinels(url)) is None:
        client = library.Redis.from_url(url, **options)
    else:
        sentinel_options = sentinel.sentinel_options | {"retry": library.retry.Retry(NoBackoff(), 0)}
        login = {"db": sentinel.database, **sentinel.login}
        manager = library.sentinel.Sentinel(sentinel.nodes, sentinel_kwargs=sentinel_options, **login, **options)
        client = manager.master_for(sentinel.service)
    follow(client.connection_pool)
    return client


def with_password(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, with the content of `REDIS_PASSWORD_FILE`, if set, inserted into `REDIS_URL`."""
    path, url = environ.get("REDIS_PASSWORD_FILE"), environ.get("REDIS_URL", "")
    if not path:
        return environ
    try:
        password = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TurnoutError(f"REDIS_PASSWORD_FILE {path} can't be read: {error.__class__.__name__}") from None
    scheme, login, hosts, rest = _split(url)
    user, _, own_password = login.partition(":")
    if own_password or not hosts.split(":")[0]:
        raise TurnoutError("REDIS_PASSWORD_FILE needs a REDIS_URL without a password, e.g. redis://worker@redis:6379/0")
    return {**environ, "REDIS_URL": f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{rest}"}
