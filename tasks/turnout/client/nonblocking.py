"""The client for asyncio: FastAPI, Starlette, aiohttp. `Client` is the same over a link that blocks."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from typing import Any, ClassVar, NoReturn, Self, TypeVar, Unpack
from uuid import uuid4

from redis.exceptions import RedisError, ResponseError

from turnout.client.link import RESUBSCRIBED, LoopLink, Outage, ThreadLink
from turnout.client.streaming import Reader
from turnout.client.submission import MAX_REQUEST_CHARS, Options, Request, job_chunks, new_job, redis_url, refusal
from turnout.errors import IntakeRefused
from turnout.ledger import LIVE, Facts, Keyring, Keys, Ledger, NewJob, Operation
from turnout.ledger.keys import checked_namespace
from turnout.redis_address import checked
from turnout.redis_trouble import takes_no_writes
from turnout.request import InferenceResponse
from turnout.result import JobResult, JobStatus

T = TypeVar("T")

RECHECK_S = 5.0
"""How often the state of an awaited job is checked, in case its notice was lost."""
NO_COPY = (
    "a client and its jobs can't be pickled or copied (they hold connections and a password): pass job.id on, and use "
    "client.job(id)"
)


class AsyncClient:
    """As `Client`, but awaited. What coroutines ask for concurrently shares a round trip."""

    _link_type: ClassVar[type[LoopLink] | type[ThreadLink]] = LoopLink

    def __init__(
        self, url: str | None = None, namespace: str | None = None, max_request_chars: int = MAX_REQUEST_CHARS
    ) -> None:
        """See `Client`."""
        source = "namespace" if namespace else "TURNOUT_NAMESPACE"
        try:
            self._namespace = checked_namespace(namespace or os.environ.get(source) or "turnout")
            source = "url" if url else "REDIS_URL"
            self._url = checked(redis_url(url))
        except ValueError as error:
            raise ValueError(f"{source} {error}") from None
        self._ledger = Ledger(Keys(self._namespace), keyring=Keyring.of(os.environ))
        self._inbox = self._ledger.keys.inbox(uuid4().hex)
        self._links: dict[int, LoopLink | ThreadLink] = {}
        self._max_chars = max_request_chars

    @property
    def _link(self) -> LoopLink | ThreadLink:
        """This process's own. A fork has none of its parent's threads: neither those that listen, nor those that would
        release a lock or a connection. Only its pid tells it apart, because uWSGI forks in C, without Python's
        `os.register_at_fork`. All threads get the same link, even if several ask first at the same time."""
        pid = os.getpid()
        return self._links.get(pid) or self._links.setdefault(pid, self._link_type(self._url, f"{self._inbox}:{pid}"))

    def __reduce__(self) -> NoReturn:
        raise TypeError(NO_COPY)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """See `Client.close`."""
        await self._link.close()

    async def submit(self, request: Request | None = None, **options: Unpack[Options]) -> AsyncJob:
        """Accept one job; see `Client.submit`."""
        return (await self._accept([new_job(request, self._max_chars, **options)]))[0]

    async def submit_many(self, requests: Iterable[Request], **options: Unpack[Options]) -> list[AsyncJob]:
        """Accept many jobs; see `Client.submit_many`."""
        jobs: list[AsyncJob] = []
        for chunk in job_chunks(requests, self._max_chars, **options):
            jobs += await self._accept(chunk, len(jobs))
        return jobs

    async def _accept(self, jobs: Sequence[NewJob], first: int | None = None) -> list[AsyncJob]:
        """first: the number of the first job, if it is one of many."""
        try:
            answers = await self._link.ask(*map(self._ledger.enqueue, jobs))
        except ResponseError as error:
            if takes_no_writes(error):
                raise IntakeRefused(f"Redis takes no writes now ({error}); try again later", retryable=True) from None
            raise
        for number, (job, answer) in enumerate(zip(jobs, answers, strict=True), first or 0):
            if refused := refusal(job.id, answer.outcome):
                if first is not None:
                    refused.add_note(f"It is requests[{number}].")
                raise refused
        return [AsyncJob(self, job.id) for job in jobs]

    def job(self, job_id: str) -> AsyncJob:
        """See `Client.job`."""
        if not isinstance(job_id, str):
            raise TypeError(f"a job's id must be a string, not {type(job_id).__name__}")
        return AsyncJob(self, _encodable(job_id))

    async def as_completed(
        self, jobs: Iterable[AsyncJob], timeout: float | None = None
    ) -> AsyncGenerator[AsyncJob, None]:
        """See `Client.as_completed`."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        waiting = defaultdict[str, list[AsyncJob]](list)
        for one in jobs:
            waiting[one.id].append(one)
        count, outage = len(waiting), Outage()
        async with self._link.listening(waiting) as inbox:
            settled = await self._settled(waiting)
            while waiting:
                for job_id in settled:
                    for job in waiting.pop(job_id, ()):
                        yield job
                if not waiting:
                    return
                left = RECHECK_S if ends_at is None else min(RECHECK_S, ends_at - time.monotonic())
                if left <= 0:
                    message = f"{len(waiting)} of {count} jobs had not ended after {timeout:g} s"
                    raise TimeoutError(f"{message}; {'Redis is away' if outage.since else await self._prospect()}")
                settled = await inbox.wait(left)
                if not settled or RESUBSCRIBED in settled:
                    with outage:
                        settled = await self._settled(waiting)

    async def purge(self, jobs: Iterable[AsyncJob | str]) -> int:
        """See `Client.purge`."""
        return await self._ask(self._ledger.purge(ids(jobs)))

    async def _ask(self, operation: Operation[T]) -> T:
        return (await self._link.ask(operation))[0]

    async def _prospect(self) -> str:
        """What to expect of jobs that have not ended."""
        try:
            workers = await self._ask(self._ledger.workers())
        except RedisError as error:
            return f"Redis doesn't say whether workers are running: {error}"
        if workers:
            return "they go on"
        return f"no worker is running on this Redis in the namespace {self._namespace} (turnout worker)"

    async def _settled(self, job_ids: Iterable[str], pieces: bool = False) -> list[str]:
        """Those that have settled, or are gone. The channel notifies of the others, with `pieces` also of each piece of
        an answer."""
        job_ids, channel = list(job_ids), self._link.channel
        states = await self._link.ask(*(self._ledger.watch(job_id, channel, pieces) for job_id in job_ids))
        return [job_id for job_id, state in zip(job_ids, states, strict=True) if state not in LIVE]


class AsyncJob:
    """One submitted job. `await job` is `await job.wait()`."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self._ledger = client._ledger
        self.id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(NO_COPY)

    def __await__(self) -> Generator[Any, None, InferenceResponse]:
        return self.wait().__await__()

    async def status(self) -> str:
        """See `Job.status`."""
        return (await self._facts()).state

    async def result(self) -> JobResult | None:
        """See `Job.result`."""
        if (result := await self._stored_result()) is not None or (await self._facts()).state in LIVE:
            return result
        if (result := await self._stored_result()) is None:  # it hasn't settled between the two, either
            raise self._answer_gone()
        return result

    def _answer_gone(self) -> LookupError:
        return LookupError(f"job {self.id} had settled; its answer was deleted, or it was replayed just then")

    async def _stored_result(self) -> JobResult | None:
        return await self._client._ask(self._ledger.result(self.id))

    async def wait(self, timeout: float | None = None) -> InferenceResponse:
        """See `Job.wait`."""
        async for _ in self._client.as_completed([self], timeout):
            pass
        return await self._answer(Outage(timeout))

    async def stream(self, idle_s: float | None = None) -> AsyncGenerator[str, None]:
        """See `Job.stream`: `async for piece in job.stream()`."""
        client, reader, outage = self._client, Reader(), Outage()
        async with client._link.listening([self.id, f"+{self.id}"]) as inbox:
            settled = await client._settled([self.id], pieces=True)
            while not reader.ended:
                pieces = None
                with outage:
                    pieces = await client._ask(self._ledger.pieces(self.id, reader.after))
                if pieces:
                    for text in reader.read(pieces):
                        yield text
                    continue
                if settled and pieces is not None:
                    break
                notices = await inbox.wait(idle_s or RECHECK_S)
                if not notices or self.id in notices or RESUBSCRIBED in notices:
                    with outage:
                        settled = await client._settled([self.id], pieces=True)
                if idle_s and not notices:
                    yield ""
        for text in reader.rest((await self._answer(outage)).text):
            yield text

    async def cancel(self) -> bool:
        """See `Job.cancel`."""
        batch = (await self._facts()).batch
        ended = await self._client._ask(self._ledger.cancel(self.id, batch))
        return ended.accepted or ended.state == JobStatus.CANCELLED  # perhaps by this call, if its first reply was lost

    async def events(self) -> list[dict[str, Any]]:
        """See `Job.events`."""
        if not (events := await self._client._ask(self._ledger.story(self.id))):
            raise _unknown(self.id)
        return events

    async def _facts(self) -> Facts:
        if (facts := await self._client._ask(self._ledger.facts(self.id))) is None:
            raise _unknown(self.id)
        return facts

    async def _answer(self, outage: Outage) -> InferenceResponse:
        while True:
            with outage:
                if (result := await self.result()) is None:
                    raise self._answer_gone()
                return result.answer()
            await self._client._link.pause()


def ids(jobs: Iterable[Any]) -> list[str]:
    """The ids of jobs, or ids as they are; a single id isn't taken for its letters."""
    job_ids = [jobs] if isinstance(jobs, str) else [job if isinstance(job, str) else job.id for job in jobs]
    return [*map(_encodable, job_ids)]


def _encodable(job_id: str) -> str:
    """Any id in a form that can be sent. No job's has a lone surrogate, which is not valid Unicode."""
    return job_id.encode(errors="backslashreplace").decode()


def _unknown(job_id: str) -> LookupError:
    return LookupError(f"there is no job {job_id}: it never existed, or its result has expired")
