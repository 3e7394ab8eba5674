"""The client for ordinary code: Django, Flask, scripts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, Unpack
from uuid import uuid4

from turnout.client import submission
from turnout.client.inbox import RECHECK_S, Inbox, Patience
from turnout.client.streaming import Reader
from turnout.client.submission import LIMITS, MAX_REQUEST_CHARS, RESULT_TTL_S, Options, Request
from turnout.ledger import Facts, Keyring, Keys, Ledger, NewJob, run
from turnout.ledger.script import Call
from turnout.redis_address import connect
from turnout.request import InferenceResponse
from turnout.result import JobResult

T = TypeVar("T")


class Client:
    """Submits jobs and waits for them. Threads may share one; it holds a pool of connections and, once somebody
    waits, one more connection on which all waiting jobs are told of."""

    def __init__(
        self, url: str | None = None, namespace: str = "turnout", max_request_chars: int = MAX_REQUEST_CHARS
    ) -> None:
        """url: of Redis; None: `REDIS_URL`, else this machine. max_request_chars: of a request as JSON, images and all.

        `TURNOUT_PAYLOAD_KEYS` seals what is stored, see docs/security.md. Raises TurnoutError, ValueError.
        """
        self._redis = connect(submission.redis_url(url), **LIMITS)
        self._ledger = Ledger(Keys(namespace), keyring=Keyring.of(os.environ))
        self._max_chars = max_request_chars
        self._inbox = Inbox(self._redis, self._ledger.keys.inbox(uuid4().hex))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the connections. Jobs go on."""
        self._inbox.close()
        self._redis.close()

    def submit(self, request: Request | None = None, **options: Unpack[Options]) -> Job:
        """Accept one job; it is safe in Redis when this returns.

        request: an InferenceRequest, a prompt, or a mapping of options. options: see `Options`.
        Raises Conflict, IntakeRefused, pydantic.ValidationError.
        """
        job = submission.new_job(request, **options)
        self._accept([job])
        return Job(self, job.id)

    def submit_many(self, requests: Iterable[Request], **options: Unpack[Options]) -> list[Job]:
        """Accept many jobs, some hundred at a round trip. `options` hold for all of them.

        If it raises, those before are accepted; with an `idempotency_key`, the call can be repeated as a whole.
        """
        jobs: list[Job] = []
        for chunk in submission.chunks(requests, **options):
            self._accept(chunk)
            jobs += [Job(self, job.id) for job in chunk]
        return jobs

    def job(self, job_id: str) -> Job:
        """A job by its id, whoever submitted it."""
        return Job(self, job_id)

    def as_completed(self, jobs: Sequence[Job], timeout: float | None = None) -> Iterator[Job]:
        """The jobs in the order in which they settle. Raises TimeoutError."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        waiting = {job.id: job for job in jobs}
        patience = Patience()
        with self._inbox.listening(waiting) as heard:
            settled = self._settled(list(waiting))
            while waiting:
                for job_id in settled:
                    if job := waiting.pop(job_id, None):
                        yield job
                if not waiting:
                    return
                left = RECHECK_S if ends_at is None else min(RECHECK_S, ends_at - time.monotonic())
                if left <= 0:
                    raise TimeoutError(f"{len(waiting)} of {len(jobs)} jobs have not settled")
                settled = heard.wait(left)
                with patience:
                    settled = settled or self._settled(list(waiting))

    def purge(self, jobs: Iterable[Job | str]) -> int:
        """Delete settled jobs with their results; live ones are left alone. Gives how many keys are gone."""
        ids = [job if isinstance(job, str) else job.id for job in jobs]
        return self._call(self._ledger.purge(ids))

    def _call(self, call: Call[T]) -> T:
        reply: T = run(self._redis, [call])[0]
        return reply

    def _accept(self, jobs: Sequence[NewJob]) -> None:
        with submission.intake(jobs, self._max_chars) as answers:
            answers += run(self._redis, [self._ledger.enqueue(job) for job in jobs])

    def _settled(self, job_ids: Sequence[str], pieces: bool = False) -> list[str]:
        """Those that have settled; of the others, word will come, and with `pieces` of each piece of their answers."""
        channel = self._inbox.channel
        return submission.settled(
            job_ids, run(self._redis, [self._ledger.watch(job_id, channel, pieces) for job_id in job_ids])
        )

    def _facts(self, job_id: str) -> Facts:
        if (facts := self._call(self._ledger.facts(job_id))) is None:
            raise submission.unknown(job_id)
        return facts


class Job:
    """One submitted job."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def status(self) -> str:
        """queued, delayed, leased, calling, succeeded, failed, expired or cancelled. LookupError: unknown."""
        return self._client._facts(self.id).state

    def result(self) -> JobResult | None:
        """How it ended, with every attempt; None while it goes on."""
        return self._client._call(self._client._ledger.result(self.id))

    def wait(self, timeout: float | None = None) -> InferenceResponse:
        """The answer, once there is one. Raises Failed, Expired, Cancelled, TimeoutError, LookupError."""
        for _ in self._client.as_completed([self], timeout):
            pass
        return submission.answer(self.id, self.result())

    def stream(self, idle_s: float | None = None) -> Iterator[str]:
        """The answer's pieces as they come, from the beginning on, whenever one begins to listen.

        A `Restarted` among them says to begin anew. A job that was not submitted with `stream=True`, and one whose
        stream has expired, gives its answer in one piece. idle_s: an empty piece whenever nothing has come for so
        long, by which a server keeps its connection open, and notices a reader that has gone.
        Raises Failed, Expired, Cancelled, LookupError.
        """
        client, reader, patience = self._client, Reader(), Patience()
        with client._inbox.listening([self.id, f"+{self.id}"]) as heard:
            settled = client._settled([self.id], pieces=True)
            while not reader.ended:
                pieces = None
                with patience:
                    pieces = client._call(client._ledger.pieces(self.id, reader.after))
                if pieces:
                    yield from reader.read(pieces)
                elif settled and pieces is not None:
                    break
                elif not (words := heard.wait(idle_s or RECHECK_S)) or self.id in words:
                    with patience:
                        settled = client._settled([self.id], pieces=True)
                    if idle_s and not words:
                        yield ""
        answer = submission.answer(self.id, self.result())
        if not reader.given and answer.text:
            yield answer.text

    def cancel(self) -> bool:
        """Cancel it, wherever it is; a call in flight is aborted. False: it had ended already."""
        client, facts = self._client, self._client._facts(self.id)
        return client._call(client._ledger.cancel(self.id, facts.batch, RESULT_TTL_S)).accepted

    def events(self) -> list[dict[str, Any]]:
        """What happened to it so far, oldest first: `at` (ms), `event`, and what belongs to it."""
        return self._client._call(self._client._ledger.story(self.id))
