"""The errors that Turnout raises. Each says what went wrong, and what to do about it.

TurnoutError
├── IntakeRefused     the job was never accepted
│   └── Conflict        its id belongs to a job with other content
├── Unreadable        its content is sealed with a missing key, or was changed
└── JobError          an accepted job that ended without an answer; carries its `result`
    ├── Failed          given up after its attempts
    ├── Expired         its deadline or its batch's cost ceiling came first
    └── Cancelled       it was cancelled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout.result import Attempt, JobResult


class TurnoutError(Exception):
    """Base of all errors that Turnout raises on purpose."""


FULL = "Redis is short of memory, so no new jobs are accepted; try again later"


class IntakeRefused(TurnoutError):
    """The job was not accepted: nothing was stored, nothing will run. `retryable`: it may be accepted later."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message, retryable)
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return self.message


class Conflict(IntakeRefused):
    """A job with this id exists with other content, so this is not a repetition of it."""

    def __init__(self, job_id: str) -> None:
        Exception.__init__(self, job_id)
        self.job_id = job_id
        self.retryable = False
        self.message = f"job {job_id} exists with other content; submit this one under another key or id"


class Unreadable(TurnoutError):
    """Something in Redis is sealed, and can't be opened here. Nothing is lost: with the right key it can be read."""

    def __init__(self, name: str, ref: str | None, known_refs: Sequence[str]) -> None:
        """name: of the content, see `Keyring.seal`."""
        super().__init__(name, ref, tuple(known_refs))
        self.key = ref
        """The missing key, `ID#HASH`; None: the key is known, but what it sealed was changed or moved."""

    def __str__(self) -> str:
        name, ref, known_refs = self.args
        if ref is None:
            return f"{name}: what is stored there was changed, or sealed under another name"
        keys = f"TURNOUT_PAYLOAD_KEYS has {', '.join(known_refs)}" if known_refs else "TURNOUT_PAYLOAD_KEYS is not set"
        return f"{name}: sealed with the key {ref}, and {keys}; add that key"


class JobError(TurnoutError):
    """A job that ended without an answer."""

    def __init__(self, result: JobResult | Mapping[str, Any]) -> None:
        """`result` may be its JSON, which is what Celery's `AsyncResult.get()` has when it raises this. It is also kept
        as JSON, so that this error can end any Celery task."""
        from turnout.result import JobResult  # here, because it imports these errors

        self.result = JobResult.model_validate(result)
        super().__init__(self.result.model_dump(mode="json", exclude_defaults=True))

    def __str__(self) -> str:
        return f"job {self.result.id} {self.result.summary()}"

    def __repr__(self) -> str:
        """Logged by Celery and shown by Flower: how it ended, not the answer."""
        return f"{type(self).__name__}({self.result.summary()!r})"


class Failed(JobError):
    """The job was given up. `attempts` has every call that was made for it, and how each ended."""

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return self.result.attempts


class Expired(JobError):
    """The job was not settled before its deadline, or before its cost ceiling was reached."""


class Cancelled(JobError):
    """The job was cancelled before it had an answer."""
