"""DueWebhook others when a job has ended: signed as Standard Webhooks has it, again and again until they have heard.

A job names a webhook of turnout.toml, and never an address. What is to be told stands in the ledger from the moment the
job is settled, so that nothing is lost with a worker; each telling is taken by one worker at a time.
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
MOST = 100
"""Most tellings at a time to one webhook, in one worker."""
TIMEOUT_S = 15.0
NOBODY = "no webhook of this name is configured"
"""By this worker, which may not have read of it yet."""
LOST, GONE = "its result is no longer kept", "status 410"
"""Why a telling is the last, whichever it is. 410 is how a receiver says that it wants no more."""
RETRY_S = (30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)
"""Waits after each telling, longer than one takes; after the last it is given up. Close to what the Standard Webhooks
specification proposes."""


def message(result: JobResult) -> bytes:
    """What is told: the job's result, answer and attempts, as the client's `result()` gives it."""
    at = datetime.fromtimestamp(result.settled_at or 0, UTC).isoformat(timespec="milliseconds")
    data = result.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"type": f"job.{result.status}", "timestamp": at, "data": data}, ensure_ascii=False).encode()


def message_id(result: JobResult) -> str:
    """The same for each telling of one end, and another one when the job was replayed and has ended anew."""
    return f"msg_{result.id}_{round(1000 * (result.settled_at or 0))}"


@dataclass(slots=True, eq=False)
class Webhooks:
    """Tells what is due. `run` is background work of every worker."""

    ledger: Ledger
    send: Coalescer
    current: CurrentConfig
    _left: set[DueWebhook] = field(default_factory=set, init=False)
    """Due, and left to workers that can read their results."""
    _under_way: Counter[str] = field(default_factory=Counter, init=False)
    """Tellings, by webhook."""

    async def run(self) -> None:
        self._under_way.clear()
        async with (
            _session(public=True) as public,
            _session(public=False) as any_address,
            asyncio.TaskGroup() as deliveries,
        ):

            async def begin() -> None:
                all_due = await self.send(self.ledger.due_webhooks(MOST + len(self._left)))
                self._left.intersection_update(all_due)
                for one in all_due:
                    # None waits for one of another webhook, which may be slow to answer.
                    if one not in self._left and self._under_way[one.webhook] < MOST:
                        self._under_way[one.webhook] += 1
                        deliveries.create_task(self._deliver(one, public, any_address))

            await run_repeatedly(begin, EVERY_S, "webhook delivery")

    async def _deliver(
        self, due: DueWebhook, public: aiohttp.ClientSession, any_address: aiohttp.ClientSession
    ) -> None:
        job_id = due.job_id
        try:
            await self.send(self.ledger.result(job_id))  # whoever can't read it takes no telling from those who can
            delivery = await self.send(self.ledger.take_webhook(due, RETRY_S))
            if delivery is not None:
                settings = self.current.settings
                webhook = settings.config.webhooks.get(due.webhook)
                if delivery.result is None:
                    why: str | None = LOST
                elif webhook is None:
                    why = NOBODY
                else:
                    session = any_address if webhook.private else public
                    why = await _post(session, webhook.url, settings.secrets[due.webhook], delivery.result)
                await self._end(delivery, why)
        except (Unreadable, ValueError) as error:  # sealed, or of another release
            self._left.add(due)
            logger.error("the webhook of job %s is left to workers that can read it: %s", job_id, error)
        except (RedisError, OSError) as error:
            logger.warning("the webhook of job %s is told again, for Redis was away: %s", job_id, error)
        finally:
            self._under_way[due.webhook] -= 1

    async def _end(self, delivery: WebhookDelivery, why: str | None) -> None:
        """After one telling. why: for what it was not heard; None: it was."""
        name, _, job_id = delivery.due_again
        if why is None:
            await self.send(self.ledger.end_webhook(delivery.due_again, {"event": "webhook_told", "webhook": name}))
        elif delivery.tries <= len(RETRY_S) and why not in (LOST, GONE):
            again = "webhook %s of job %s failed, to be told again: %s"
            level = logging.WARNING if why == NOBODY else logging.INFO
            logger.log(level, again, name, job_id, why, extra={"job": job_id})
        else:
            logger.warning("webhook %s of job %s is given up: %s", name, job_id, why, extra={"job": job_id})
            event = {"event": "webhook_failed", "webhook": name, "why": why}
            await self.send(self.ledger.end_webhook(delivery.due_again, event))


async def _post(session: aiohttp.ClientSession, url: str, secret: Secret, result: JobResult) -> str | None:
    """Why it was not heard; None if it was."""
    body, at = message(result), int(datetime.now(UTC).timestamp())
    headers = signed(secret.reveal(), message_id(result), at, body)
    try:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as reply:
            return None if 200 <= reply.status < 300 else f"status {reply.status}"
    except (aiohttp.ClientError, OSError, ValueError) as error:  # the last: of a name that can't be looked up
        return type(error).__name__


def _session(*, public: bool) -> aiohttp.ClientSession:
    factory = public_socket if public else None
    connector = aiohttp.TCPConnector(limit=0, socket_factory=factory, use_dns_cache=False)  # `MOST` limits each webhook
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
