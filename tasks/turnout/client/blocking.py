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

    _link_type = ThreadLink


class Client:
    """Submits jobs and waits for them. Threads may share one. It holds a pool of connections and, from the first wait
    on, one more connection for the notices of all awaited jobs."""

    def __init__(
        self, url: str | None = None, namespace: str | None = None, max_request_chars: int = MAX_REQUEST_CHARS
    ) -> None:
        """url: of Redis; None: `REDIS_URL`, else this machine. namespace: the workers'; None: `TURNOUT_NAMESPACE`, else
        `turnout`. max_request_chars: of a request as JSON, including images.

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
        """Free the connections. Jobs go on; using this client raises RuntimeError from now on."""
        run_sync(self._core.aclose())

    def submit(self, request: Request | None = None, **options: Unpack[Options]) -> Job:
        """Accept one job; it is safe in Redis when this returns.

        request: an InferenceRequest, a prompt, or a mapping of options. options: see `Options`; they override the
        request's fields, except that constraints, metadata and extras are merged key by key.
        Raises Conflict, IntakeRefused, pydantic.ValidationError.
        """
        return Job(run_sync(self._core.submit(request, **options)))

    def submit_many(self, requests: Iterable[Request], **options: Unpack[Options]) -> list[Job]:
        """Accept many jobs, some hundred at a round trip. Each request's own fields override the `options`.

        If it raises, a note names the request, and others may have been accepted; with an `idempotency_key`, the whole
        call can be repeated.
        """
        return [Job(job) for job in run_sync(self._core.submit_many(requests, **options))]

    def job(self, job_id: str) -> Job:
        """A job by its id, no matter who submitted it."""
        return Job(self._core.job(job_id))

    def as_completed(self, jobs: Iterable[Job], timeout: float | None = None) -> Generator[Job, None, None]:
        """The jobs in the order in which they settle, each as often as it is in `jobs`. Unknown or expired ones come
        first; only using them raises LookupError. Raises TimeoutError."""
        jobs = list(jobs)
        by_core = {job._core: job for job in jobs}
        for settled in _each(self._core.as_completed([job._core for job in jobs], timeout)):
            yield by_core[settled]

    def purge(self, jobs: Iterable[Job | str]) -> int:
        """Delete settled jobs with their results; live ones are left alone. Returns how many were deleted. If Redis's
        reply was lost on the way and it is asked again, those deleted by the first try aren't counted."""
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
        """The answer's pieces as they come, always from the beginning.

        A `Restarted` among them means that the answer starts again. A job submitted without `stream=True`, or whose
        stream has expired, gives its answer in one piece. idle_s: yield an empty piece whenever nothing has come for
        this long, so that a server keeps its connection open, and notices a reader that has left.
        Raises Failed, Expired, Cancelled, LookupError.
        """
        return _each(self._core.stream(idle_s))

    def cancel(self) -> bool:
        """Cancel it, whatever its state; a call in flight is aborted. False: it had already ended otherwise."""
        return run_sync(self._core.cancel())

    def events(self) -> list[dict[str, Any]]:
        """What has happened so far, oldest first: `at` (ms), `event` and its details. LookupError: unknown."""
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
    return await anext(items)  # inside `run_sync`, because a loop learns of a generator at its first step
