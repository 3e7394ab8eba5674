"""How a job ended: what the ledger stores as its result, and every attempt that led there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from pydantic import Field

from turnout.errors import Cancelled, Expired, Failed, JobError
from turnout.request import MICROUSD_PER_USD, InferenceResponse
from turnout.value import Tolerant


class JobStatus(StrEnum):
    """The four ways in which a job settles."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


_ERRORS: dict[JobStatus, type[JobError]] = {
    JobStatus.FAILED: Failed,
    JobStatus.EXPIRED: Expired,
    JobStatus.CANCELLED: Cancelled,
}


class Problem(Tolerant):
    """Why a job, or a line of a batch, has no answer. Never holds a prompt or a key."""

    code: str
    """For machines: a `FailureKind`, or `invalid_json`, `batch_expired`, `poison` …"""
    message: str
    """For people: what was wrong, where, and what to do."""
    retryable: bool = False
    """The same job may succeed if it is run again later."""


class Attempt(Tolerant):
    """One call to one endpoint."""

    endpoint: str
    """`provider/model`, with `#account` where a provider has several keys."""
    provider: str
    model: str
    """Our name for the model."""
    started_at: float
    """Unix time."""
    duration_s: float = Field(default=0.0, ge=0)
    failure: str | None = None
    """A `FailureKind`; None: it succeeded."""
    message: str | None = None
    """The provider's own words about the failure."""
    cost_microusd: int = Field(default=0, ge=0)
    """The known cost of the call."""
    unsure_microusd: int = Field(default=0, ge=0)
    """What it may have cost: it was interrupted, so it is unknown whether it was billed."""

    @property
    def succeeded(self) -> bool:
        return self.failure is None


class JobResult(Tolerant):
    """A settled job. It has a `response` if it succeeded, otherwise an `error`."""

    id: str
    status: JobStatus
    response: InferenceResponse | None = None
    error: Problem | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    """The caller's own labels, as they came with the request."""
    attempts: tuple[Attempt, ...] = ()
    failovers: int = Field(default=0, ge=0)
    """How often the job moved to another endpoint because one failed."""
    deferrals: int = Field(default=0, ge=0)
    """How often it was parked because nothing had room; such waits aren't attempts."""
    accepted_at: float | None = None
    """Unix time, like the two below. A replay sets it again."""
    started_at: float | None = None
    """When its first attempt began."""
    settled_at: float | None = None
    cost_microusd: int = Field(default=0, ge=0)
    """Over all attempts. A call of unknown cost adds nothing here: see `response.cost_microusd`."""
    unsure_microusd: int = Field(default=0, ge=0)

    @classmethod
    def unanswered(cls, id: str, status: JobStatus, code: str, message: str) -> Self:
        """A result without answer and attempts: no call was made for it, or none is known here."""
        return cls(id=id, status=status, error=Problem(code=code, message=message))

    @property
    def cost_usd(self) -> float:
        return self.cost_microusd / MICROUSD_PER_USD

    @property
    def succeeded(self) -> bool:
        return self.status is JobStatus.SUCCEEDED

    def answer(self) -> InferenceResponse:
        """The response; raises Failed, Expired or Cancelled if there is none."""
        if self.response is None or not self.succeeded:
            raise _ERRORS.get(self.status, Failed)(self)
        return self.response

    def summary(self) -> str:
        """One line for people: `groq · gpt-oss-120b · 412 tokens · $0.0002 · 0.8 s · 2 attempts`."""
        parts: list[str] = []
        if (response := self.response) is not None:
            unpriced = response.cost_microusd is None and not self.cost_microusd
            parts = [
                response.provider,
                response.model_requested,
                f"{response.usage.total_tokens} tokens",
                "cost unknown" if unpriced else dollars(self.cost_microusd),
                f"{response.latency_s:.1f} s",
            ]
        else:
            parts = [self.status.value]
            if self.error is not None:
                parts.append(f"{self.error.code}: {self.error.message}")
            if self.cost_microusd:
                parts.append(dollars(self.cost_microusd))
        if self.unsure_microusd:
            parts.append(f"{dollars(self.unsure_microusd)} unsure")
        if len(self.attempts) != (1 if self.succeeded else 0):
            parts.append(f"{len(self.attempts)} attempt{'' if len(self.attempts) == 1 else 's'}")
        if response is not None and response.simulated:
            parts.append("simulated")
        return " · ".join(parts)


def celery_record(result: JobResult, text: str) -> str:
    """What Celery would store for this job, so that any `AsyncResult(job_id)` reads it. `text`: `result` as JSON.

    `.get()` returns the result as a dict, or raises the error of `turnout.errors` with which it ended.
    """
    if result.succeeded:
        state, value = "SUCCESS", text
    else:
        state = "REVOKED" if result.status is JobStatus.CANCELLED else "FAILURE"
        error = _ERRORS.get(result.status, Failed).__name__
        value = f'{{"exc_type":"{error}","exc_module":"turnout.errors","exc_message":[{text}]}}'
    done_at = datetime.fromtimestamp(result.settled_at, UTC) if result.settled_at else datetime.now(UTC)
    return (
        f'{{"task_id":{json.dumps(result.id)},"status":"{state}","result":{value},'
        f'"traceback":null,"children":[],"date_done":"{done_at.isoformat()}"}}'
    )


def dollars(microusd: int) -> str:
    """Money for people: two decimals from a cent up, otherwise as many as needed: `$1.23`, `$0.0002`, `$0`."""
    if microusd == 0:
        return "$0"
    if abs(microusd) >= 10_000:
        return f"${microusd / MICROUSD_PER_USD:,.2f}"
    return f"${microusd / MICROUSD_PER_USD:.6f}".rstrip("0")
