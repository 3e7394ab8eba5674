"""Delivers webhooks when jobs end: signed according to Standard Webhooks, and repeated until one is received.

A job names a webhook of turnout.toml, never an address. A due webhook is in the ledger from the moment the job is
settled, so that none is lost with a worker; one worker at a time takes each delivery.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from redis.exceptions import RedisError

from turnout.errors import Unreadable
from turnout.ledger import Coalescer, DueWebhook, Ledger, WebhookDelivery
from turnout.result import JobResult
from turnout.webhook import signed
from turnout_workers.background.tasks import run_repeatedly
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.public_addresses import public_socket
from turnout_workers.providers.account import Secret

logger = logging.getLogger(__name__)

EVERY_S = 0.5
MAX_DELIVERIES = 100
"""Most concurrent deliveries to one webhook in one worker."""
TIMEOUT_S = 15.0
UNKNOWN = "no webhook of this name is configured"
"""In this worker, which may not have read the newest configuration yet."""
LOST, GONE = "its result is no longer kept", "status 410"
"""Reasons to deliver no more. With status 410 a receiver says that it wants no more."""
RETRY_S = (30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Waits after each delivery, longer than one takes; after the last it is given up. Close to what the Standard Webhooks
specification proposes."""


def message(result: JobResult) -> bytes:
    """The body: the job's result with answer and attempts, as the client's `result()` returns it."""
    at = datetime.fromtimestamp(result.settled_at or 0, UTC).isoformat(timespec="milliseconds")
    data = result.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"type": f"job.{result.status}", "timestamp": at, "data": data}, ensure_ascii=False).encode()


def message_id(result: JobResult) -> str:
    """The same for all deliveries of one end, and another when a replayed job ends again."""
    return f"msg_{result.id}_{round(1000 * (result.settled_at or 0))}"


@dataclass(slots=True, eq=False)
class Webhooks:
    """Delivers due webhooks. `run` is background work of every worker."""

    ledger: Ledger
    send: Coalescer
    current: CurrentConfig
    _left: set[DueWebhook] = field(default_factory=set, init=False)
    """Due webhooks left to workers that can read their results."""
    _in_flight: Counter[str] = field(default_factory=Counter, init=False)
    """Deliveries, by webhook."""

    async def run(self) -> None:
        self._in_flight.clear()
        async with (
            _session(public=True) as public,
            _session(public=False) as any_address,
            asyncio.TaskGroup() as deliveries,
        ):

            async def begin_due() -> None:
                all_due = await self.send(self.ledger.due_webhooks(MAX_DELIVERIES + len(self._left)))
                self._left.intersection_update(all_due)
                for due in all_due:
                    # None waits for another webhook's, whose receiver may be slow.
                    if due not in self._left and self._in_flight[due.webhook] < MAX_DELIVERIES:
                        self._in_flight[due.webhook] += 1
                        deliveries.create_task(self._deliver(due, public, any_address))

            await run_repeatedly(begin_due, EVERY_S, "webhook delivery")

    async def _deliver(
        self, due: DueWebhook, public: aiohttp.ClientSession, any_address: aiohttp.ClientSession
    ) -> None:
        job_id = due.job_id
        try:
            await self.send(self.ledger.result(job_id))  # a worker that can't read it must not take the delivery
            delivery = await self.send(self.ledger.take_webhook(due, RETRY_S))
            if delivery is not None:
                settings = self.current.settings
                webhook = settings.config.webhooks.get(due.webhook)
                if delivery.result is None:
                    problem: str | None = LOST
                elif webhook is None:
                    problem = UNKNOWN
                else:
                    session = any_address if webhook.private else public
                    problem = await _post(session, webhook.url, settings.secrets[due.webhook], delivery.result)
                await self._end(delivery, problem)
        except (Unreadable, ValueError) as error:  # sealed, or from another release
            self._left.add(due)
            logger.error("the webhook of job %s is left to workers that can read it: %s", job_id, error)
        except (RedisError, OSError) as error:
            logger.warning("webhook of job %s will be sent again: Redis was away (%s)", job_id, error)
        finally:
            self._in_flight[due.webhook] -= 1

    async def _end(self, delivery: WebhookDelivery, problem: str | None) -> None:
        """End or repeat a delivery. problem: why it failed; None: it was received."""
        name, _, job_id = delivery.due_again
        if problem is None:
            await self.send(self.ledger.end_webhook(delivery.due_again, {"event": "webhook_told", "webhook": name}))
        elif delivery.tries <= len(RETRY_S) and problem not in (LOST, GONE):
            failed = "webhook %s of job %s failed and will be sent again: %s"
            level = logging.WARNING if problem == UNKNOWN else logging.INFO
            logger.log(level, failed, name, job_id, problem, extra={"job": job_id})
        else:
            logger.warning("webhook %s of job %s is given up: %s", name, job_id, problem, extra={"job": job_id})
            event = {"event": "webhook_failed", "webhook": name, "why": problem}
            await self.send(self.ledger.end_webhook(delivery.due_again, event))


async def _post(session: aiohttp.ClientSession, url: str, secret: Secret, result: JobResult) -> str | None:
    """Send it. Returns why that failed, or None."""
    body, at = message(result), int(datetime.now(UTC).timestamp())
    headers = signed(secret.reveal(), message_id(result), at, body)
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as reply:
            return None if 200 <= reply.status < 300 else f"status {reply.status}"
    except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: the name can't be resolved
        return type(error).__name__


def _session(*, public: bool) -> aiohttp.ClientSession:
    factory = public_socket if public else None
    connector = aiohttp.TCPConnector(limit=0, socket_factory=factory, use_dns_cache=False)  # see MAX_DELIVERIES
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
