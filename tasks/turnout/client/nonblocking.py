"""The client for asyncio: FastAPI, Starlette, aiohttp."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from typing import Any, Unpack
from uuid import uuid4

import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from turnout.client import submission
from turnout.client.inbox import RECHECK_S, AsyncInbox, Patience
from turnout.client.streaming import Reader
from turnout.client.submission import LIMITS, MAX_REQUEST_CHARS, RESULT_TTL_S, Options, Request
from turnout.ledger import Coalescer, Facts, Keyring, Keys, Ledger, NewJob
from turnout.redis_address import connect_async
from turnout.request import InferenceResponse
from turnout.result import JobResult


class AsyncClient:
    """As `Client`, but awaited. What concurrent coroutines ask for at once shares a round trip."""

    def __init__(
        self, url: str | None = None, namespace: str = "turnout", max_request_chars: int = MAX_REQUEST_CHARS
    ) -> None:
        # A connection may have died since its last use, which only the next one tells: then that is made once more, as
        # all may that a client asks.
        again = Retry(NoBackoff(), 1, (redis.ConnectionError,))
        self._redis = connect_async(submission.redis_url(url), retry=again, **LIMITS)
        self._call = Coalescer(self._redis)
        self._ledger = Ledger(Keys(namespace), keyring=Keyring.of(os.environ))
        self._max_chars = max_request_chars
        self._inbox = AsyncInbox(self._redis, self._ledger.keys.inbox(uuid4().hex))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Free the connections. Jobs go on."""
        await self._inbox.aclose()
        await self._redis.aclose()

    async def submit(self, request: Request | None = None, **options: Unpack[Options]) -> AsyncJob:
        """Accept one job; see `Client.submit`."""
        job = submission.new_job(request, **options)
        await self._accept([job])
        return AsyncJob(self, job.id)

    async def submit_many(self, requests: Iterable[Request], **options: Unpack[Options]) -> list[AsyncJob]:
        """Accept many jobs; see `Client.submit_many`."""
        jobs: list[AsyncJob] = []
        for chunk in submission.chunks(requests, **options):
            await self._accept(chunk)
            jobs += [AsyncJob(self, job.id) for job in chunk]
        return jobs

    def job(self, job_id: str) -> AsyncJob:
        """A job by its id, whoever submitted it."""
        return AsyncJob(self, job_id)

    async def as_completed(self, jobs: Sequence[AsyncJob], timeout: float | None = None) -> AsyncIterator[AsyncJob]:
        """The jobs in the order in which they settle. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        ends_at = None if timeout is None else loop.time() + timeout
        waiting = {job.id: job for job in jobs}
        patience = Patience()
        async with self._inbox.listening(waiting) as heard:
            settled = await self._settled(list(waiting))
            while waiting:
                for job_id in settled:
                    if job := waiting.pop(job_id, None):
                        yield job
                if not waiting:
                    return
                left = RECHECK_S if ends_at is None else min(RECHECK_S, ends_at - loop.time())
                if left <= 0:
                    raise TimeoutError(f"{len(waiting)} of {len(jobs)} jobs have not settled")
                settled = await heard.wait(left)
                with patience:
                    settled = settled or await self._settled(list(waiting))

    async def purge(self, jobs: Iterable[AsyncJob | str]) -> int:
        """Delete settled jobs with their results; live ones are left alone. Gives how many keys are gone."""
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        return await self._call(self._ledger.purge(ids))

    async def _accept(self, jobs: Sequence[NewJob]) -> None:
        with submission.intake(jobs, self._max_chars) as answers:
            answers += await self._call.all(*(self._ledger.enqueue(job) for job in jobs))

    async def _settled(self, job_ids: Sequence[str], pieces: bool = False) -> list[str]:
        channel = self._inbox.channel
        return submission.settled(
            job_ids, await self._call.all(*(self._ledger.watch(job_id, channel, pieces) for job_id in job_ids))
        )

    async def _facts(self, job_id: str) -> Facts:
        if (facts := await self._call(self._ledger.facts(job_id))) is None:
            raise submission.unknown(job_id)
        return facts


class AsyncJob:
    """One submitted job. `await job` is `await job.wait()`."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.id})"

    def __await__(self) -> Generator[Any, None, InferenceResponse]:
        return self.wait().__await__()

    async def status(self) -> str:
        """queued, delayed, leased, calling, succeeded, failed, expired or cancelled. LookupError: unknown."""
        return (await self._client._facts(self.id)).state

    async def result(self) -> JobResult | None:
        """How it ended, with every attempt; None while it goes on."""
        return await self._client._call(self._client._ledger.result(self.id))

    async def wait(self, timeout: float | None = None) -> InferenceResponse:
        """The answer, once there is one. Raises Failed, Expired, Cancelled, TimeoutError, LookupError."""
        async for _ in self._client.as_completed([self], timeout):
            pass
        return submission.answer(self.id, await self.result())

    async def stream(self, idle_s: float | None = None) -> AsyncIterator[str]:
        """As `Job.stream`: `async for piece in job.stream()`."""
        client, reader, patience = self._client, Reader(), Patience()
        async with client._inbox.listening([self.id, f"+{self.id}"]) as heard:
            settled = await client._settled([self.id], pieces=True)
            while not reader.ended:
                pieces = None
                with patience:
                    pieces = await client._call(client._ledger.pieces(self.id, reader.after))
                if pieces:
                    for text in reader.read(pieces):
                        yield text
                elif settled and pieces is not None:
                    break
                elif not (words := await heard.wait(idle_s or RECHECK_S)) or self.id in words:
                    with patience:
                        settled = await client._settled([self.id], pieces=True)
                    if idle_s and not words:
                        yield ""
        answer = submission.answer(self.id, await self.result())
        if not reader.given and answer.text:
            yield answer.text

    async def cancel(self) -> bool:
        """Cancel it, wherever it is; a call in flight is aborted. False: it had ended already."""
        client, facts = self._client, await self._client._facts(self.id)
        return (await client._call(client._ledger.cancel(self.id, facts.batch, RESULT_TTL_S))).accepted

    async def events(self) -> list[dict[str, Any]]:
        """What happened to it so far, oldest first: `at` (ms), `event`, and what belongs to it."""
        return await self._client._call(self._client._ledger.story(self.id))
