"""Telling others when a job has ended: signed as Standard Webhooks has it, again and again until they have heard.

A job names a webhook of turnout.toml, and never an address. What is to be told stands in the ledger from the moment the
job is settled, so that nothing is lost with a worker; each telling is taken by one worker at a time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from redis.exceptions import RedisError

from turnout.errors import Unreadable
from turnout.ledger import Coalescer, Hook, Ledger
from turnout.result import JobResult
from turnout.webhook import signed
from turnout_workers.providers.settings import Secret

logger = logging.getLogger(__name__)

EVERY_S = 0.5
BATCH = 100
TIMEOUT_S = 15.0
NAT64 = ipaddress.ip_network("64:ff9b::/96")
RETRY_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Waits after each failed telling; then it is given up. Close to what the Standard Webhooks specification proposes."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Somebody to be told."""

    url: str
    secret: Secret
    private: bool = False
    """Whether its address may be a private one."""


def message(result: JobResult) -> bytes:
    """What is told: the job's result, answer and attempts, as the client's `result()` gives it."""
    at = datetime.fromtimestamp(result.settled_at or 0, UTC).isoformat(timespec="milliseconds")
    data = result.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"type": f"job.{result.status}", "timestamp": at, "data": data}, ensure_ascii=False).encode()


def message_id(result: JobResult) -> str:
    """The same for each telling of one end, and another one when the job was replayed and has ended anew."""
    return f"msg_{result.id}_{round(1000 * (result.settled_at or 0))}"


class Webhooks:
    """Tells what is due. `run` is background work of every worker."""

    def __init__(self, ledger: Ledger, call: Coalescer) -> None:
        self._ledger = ledger
        self._call = call
        self.configured: Mapping[str, Webhook] = {}
        """By the name that jobs use."""

    async def run(self) -> None:
        public, private = _session(private=False), _session(private=True)
        async with public, private:
            while True:
                await asyncio.sleep(EVERY_S)
                if not self.configured:
                    continue  # nobody is to be told of anything
                try:
                    due = await self._call(self._ledger.due_hooks(BATCH))
                    await asyncio.gather(*(self._tell(job_id, public, private) for job_id in due))
                except (RedisError, OSError) as error:
                    logger.warning("webhooks wait for Redis: %s", error)

    async def _tell(self, job_id: str, public: aiohttp.ClientSession, private: aiohttp.ClientSession) -> None:
        try:
            hook = await self._call(self._ledger.take_hook(job_id, TIMEOUT_S * 2))
        except Unreadable as error:
            logger.error("the webhook of job %s is left to a worker that has the key: %s", job_id, error)
            return
        if hook is None:
            return
        webhook = self.configured.get(hook.name)
        if webhook is None:
            await self._give_up(job_id, hook, "no webhook of this name is configured")
            return
        why = await self._post(private if webhook.private else public, webhook, hook)
        if why is None:
            await self._call(self._ledger.end_hook(job_id, {"event": "webhook_told", "webhook": hook.name}))
        elif hook.tries >= len(RETRY_S):
            await self._give_up(job_id, hook, why)
        else:
            logger.info(
                "webhook %s of job %s failed, to be told again: %s", hook.name, job_id, why, extra={"job": job_id}
            )
            await self._call(self._ledger.put_off_hook(job_id, RETRY_S[hook.tries]))

    async def _give_up(self, job_id: str, hook: Hook, why: str) -> None:
        logger.warning("webhook %s of job %s is given up: %s", hook.name, job_id, why, extra={"job": job_id})
        event = {"event": "webhook_failed", "webhook": hook.name, "why": why}
        await self._call(self._ledger.end_hook(job_id, event))

    async def _post(self, session: aiohttp.ClientSession, webhook: Webhook, hook: Hook) -> str | None:
        """Why it was not heard; None if it was."""
        body, at = message(hook.result), int(datetime.now(UTC).timestamp())
        headers = signed(webhook.secret.reveal(), message_id(hook.result), at, body)
        try:
            async with session.post(webhook.url, data=body, headers=headers, allow_redirects=False) as reply:
                return None if 200 <= reply.status < 300 else f"status {reply.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return type(error).__name__


def _session(private: bool) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=None if private else PublicResolver(), use_dns_cache=False)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class PublicResolver(AbstractResolver):
    """Gives public addresses only, at the moment of connecting: a name can't be turned to an inner one later."""

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
        # A gateway on the way hands on to the IPv4 address within.
        within = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in NAT64 else found.sixtofour
        return found.is_global and (within is None or within.is_global)
    return found.is_global


def address_trouble(url: str, private: bool) -> str | None:
    """What is wrong with a webhook's address, or None. A literal address never meets the resolver: hence here."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not private:
        return "url must begin with https://; set private = true for a server of your own network"
    if not (host := parts.hostname):
        return "url names no host"
    literal = ":" in host or host.replace(".", "").isdigit()
    if literal and not private and not is_public(host):
        return f"{host} is a private address; set private = true if that is meant"
    return None  # a name, which is looked at when connecting
