"""The client for ordinary code: Django, Flask, scripts. It is `AsyncClient` over a link that blocks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable
from typing import Any, NoReturn, Self, TypeVar, Unpack

from turnout.client.link import ThreadLink
from turnout.client.nonblocking import NO_COPY, AsyncClient, AsyncJob, ids
from turnout.client.submission import MAX_REQUEST_CHARS, Options, Request
from turnout.ledger.sending import run_sync
from turnout.request import InferenceResponse
from turnout.result import JobResult

T = TypeVar("T")


class _Core(AsyncClient):
    """None of its coroutines ever waits for a loop."""

    _reach = ThreadLink


class Client:
    """Submits jobs and waits for them. Threads may share one; it holds a pool of connections and, once somebody
    waits, one more connection on which all waiting jobs are told of."""

    def __init__(
        self, url: str | None = None, namespace: str | None = None, max_request_chars: int = MAX_REQUEST_CHARS
    ) -> None:
        """url: of Redis; None: `REDIS_URL`, else this machine. namespace: the workers'; None: `TURNOUT_NAMESPACE`, else
        `turnout`. max_request_chars: of a request as JSON, images and all.

        `TURNOUT_PAYLOAD_KEYS` seals what is stored, see docs/security.md. Raises TurnoutError, ValueError.
        """
        self._core = _Core(url, namespace, max_request_chars)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NO_COPY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the connections. Jobs go on; asking for them here is a RuntimeError from now on."""
        run_sync(self._core.aclose())

    def submit(self, request: Request | None = None, **options: Unpack[Options]) -> Job:
        """Accept one job; it is safe in Redis when this returns.

        request: an InferenceRequest, a prompt, or a mapping of options. options: see `Options`; they count before what
        is in the request, of which constraints, metadata and extras are joined with them key by key.
        Raises Conflict, IntakeRefused, pydantic.ValidationError.
        """
        return Job(run_sync(self._core.submit(request, **options)))

    def submit_many(self, requests: Iterable[Request], **options: Unpack[Options]) -> list[Job]:
        """Accept many jobs, some hundred at a round trip. `options` hold for each, where it says nothing else itself.

        If it raises, its note names the request, and others may have been accepted; with an `idempotency_key`, the
        call can be repeated as a whole.
        """
        return [Job(job) for job in run_sync(self._core.submit_many(requests, **options))]

    def job(self, job_id: str) -> Job:
        """A job by its id, whoever submitted it."""
        return Job(self._core.job(job_id))

    def as_completed(self, jobs: Iterable[Job], timeout: float | None = None) -> Generator[Job, None, None]:
        """The jobs in the order in which they settle, each as often as it is given. One that is unknown, or has
        expired, comes first, and raises LookupError itself. Raises TimeoutError."""
        jobs = list(jobs)
        known = {job._core: job for job in jobs}
        for done in _each(self._core.as_completed([job._core for job in jobs], timeout)):
            yield known[done]

    def purge(self, jobs: Iterable[Job | str]) -> int:
        """Delete settled jobs with their results; live ones are left alone. Returns how many this has deleted: where a
        reply of Redis is lost on the way, it is asked again, and counts none of those that were gone by then."""
        return run_sync(self._core.purge(ids(jobs)))


class Job:
    """One submitted job."""

    def __init__(self, core: AsyncJob) -> None:
        self._core = core
        self.id = core.id

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(NO_COPY)

    def status(self) -> str:
        """queued, delayed, leased, calling, succeeded, failed, expired or cancelled. LookupError: unknown."""
        return run_sync(self._core.status())

    def result(self) -> JobResult | None:
        """How it ended, with every attempt; None while it goes on. LookupError: unknown."""
        return run_sync(self._core.result())

    def wait(self, timeout: float | None = None) -> InferenceResponse:
        """The answer, once there is one. Raises Failed, Expired, Cancelled, TimeoutError, LookupError."""
        return run_sync(self._core.wait(timeout))

    def stream(self, idle_s: float | None = None) -> Generator[str, None, None]:
        """The answer's pieces as they come, from the beginning on, whenever one begins to listen.

        A `Restarted` among them says to begin anew. A job that was not submitted with `stream=True`, and one whose
        stream has expired, gives its answer in one piece. idle_s: an empty piece whenever nothing has come for so
        long, by which a server keeps its connection open, and notices a reader that has gone.
        Raises Failed, Expired, Cancelled, LookupError.
        """
        return _each(self._core.stream(idle_s))

    def cancel(self) -> bool:
        """Cancel it, wherever it is; a call in flight is aborted. False: it had ended otherwise."""
        return run_sync(self._core.cancel())

    def events(self) -> list[dict[str, Any]]:
        """What happened so far, oldest first: `at` (ms), `event`, and what belongs to it. LookupError: unknown."""
        return run_sync(self._core.events())


def _each(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """`async for` over a generator that never waits for a loop."""
    try:
        while True:
            yield run_sync(_next(items))
    except StopAsyncIteration:
        pass
    finally:
        run_sync(items.aclose())


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)  # not before `run_sync` has begun: a loop gets to know of a generator at its first step
