"""What the ledger promises of one job, as a pure function: the executable specification.

The walk and the stateful test do each step here and in the real Lua, and compare reply and stored state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

TTL, WAIT, LEAD = 2, 1, 2
"""Lease, deferral and deadline in ms: so small that every edge is reached, to the millisecond."""
DEATH, POISON = 2, 4
HELD, WAITING = ("leased", "calling"), ("queued", "delayed")


@dataclass(frozen=True, slots=True)
class Job:
    """All of a job that can be seen. Times are in ms."""

    state: str = "none"
    token: int = 0
    crashes: int = 0
    requeues: int = 0
    progress: str = ""
    lease: int | None = None
    due: int | None = None
    deadline: int | None = None
    suspect: bool = False
    """Its last worker is thought to have died with it."""
    lives: bool = False
    """Its worker has shown life since."""
    winner: tuple[str, int] | None = None
    """How it was settled, and by which token's result; 0: by no worker's."""
    unheard: str = ""
    """1: whoever has a message of it is to tell Celery of its end. 0: somebody does."""


@dataclass(frozen=True, slots=True)
class Step:
    """What somebody does. `token`: whose; may be long out of date, or never given out."""

    name: str
    token: int = 0


@dataclass(frozen=True, slots=True)
class After:
    reply: object
    job: Job
    pushed: int = 0
    """Messages published by the step."""


def apply(job: Job, step: Step, now: int) -> After:
    """What must come of a step."""
    return RULES[step.name](job, step.token, now)


def _queued(job: Job, reply: object, **changes: object) -> After:
    return After(reply, replace(job, state="queued", lease=None, due=None, **changes), 1)  # type: ignore[arg-type]


def _ended(job: Job, reply: str, status: str, by: int) -> After:
    return After(
        reply,
        Job(status, job.token, job.crashes, job.requeues, winner=(status, by)),
    )


def _enqueue(job: Job, _: int, now: int, deadline: int | None = None) -> After:
    if job.state != "none":
        return After("duplicate", job)
    return After("queued", Job("queued", deadline=deadline), 1)


def _enqueue_urgent(job: Job, _: int, now: int) -> After:
    return _enqueue(job, _, now, now + LEAD)


def _enqueue_other(job: Job, _: int, now: int) -> After:
    return _enqueue(job, _, now) if job.state == "none" else After("conflict", job)


def _claim(job: Job, _: int, now: int) -> After:
    if job.state != "queued":
        return After(job.state, job)
    token = job.token + 1
    return After(token, replace(job, state="leased", token=token, lease=now + TTL))


def _ours(job: Job, token: int) -> bool:
    return job.state in HELD and job.token == token


def _begin(job: Job, token: int, now: int) -> After:
    if not _ours(job, token):
        return After(0, job)
    return After(1, replace(job, state="calling"))


def _renew(job: Job, token: int, now: int) -> After:
    return After(True, replace(job, lease=now + TTL)) if _ours(job, token) else After(False, job)


def _fail_over(job: Job, token: int, now: int) -> After:
    return _queued(job, True, requeues=job.requeues + 1, progress="over") if _ours(job, token) else After(False, job)


def _release(job: Job, token: int, now: int) -> After:
    return _queued(job, True, progress="over") if _ours(job, token) else After(False, job)


def _park(job: Job, token: int, now: int) -> After:
    if not _ours(job, token):
        return After(False, job)
    return After(True, replace(job, state="delayed", lease=None, due=now + WAIT, progress="parked"))


def _settle(status: str, late: bool = False) -> Callable[[Job, int, int], After]:
    def ended(job: Job, reply: str, token: int) -> After:
        after = _ended(job, reply, status, token)
        return _left_to_tell(job, after) if late else replace(after, job=replace(after.job, unheard=""))

    def rule(job: Job, token: int, now: int) -> After:
        if job.state == "none":
            return After("gone", job)
        if job.winner is not None and job.winner[1] == token:
            if job.unheard == "0" and not late:
                return After("fenced", job)
            return After("repeated", replace(job, unheard=job.unheard if late else ""))
        if job.winner is not None:
            return After("duplicate", job)
        if _ours(job, token):
            return ended(job, "settled", token)
        if status == "succeeded" and 1 <= token <= job.token:
            return ended(job, "salvaged", token)
        return After("fenced", job)

    return rule


def _left_to_tell(before: Job, after: After) -> After:
    """A worker is to tell Celery: if none has a message of the job, it gets one."""
    return replace(after, job=replace(after.job, unheard="1"), pushed=int(before.state != "queued"))


def _by_none(status: str, allowed: Callable[[Job, int], bool]) -> Callable[[Job, int, int], After]:
    def rule(job: Job, _: int, now: int) -> After:
        if job.state == "none":
            return After("gone", job)
        if job.winner is not None:
            return After("duplicate", job)
        if not allowed(job, now):
            return After("refused", job)
        return _left_to_tell(job, _ended(job, "settled", status, 0))

    return rule


def _take_end(job: Job, _: int, now: int) -> After:
    return After(job.unheard == "1", replace(job, unheard=job.unheard and "0"))


def _lapsed(job: Job, now: int) -> bool:
    return job.lease is not None and job.lease <= now


def _sweep(job: Job, _: int, now: int) -> After:
    if not _lapsed(job, now):
        return After("none", job)
    crashes = job.crashes + (1 if job.lives else DEATH)
    if crashes >= POISON:
        return After("poison", job)
    return _queued(job, "queued", crashes=crashes, suspect=True, lives=False)


def alive(job: Job) -> Job:
    """What it means for a job that all workers have shown life."""
    return replace(job, lives=job.suspect)


def _wake(job: Job, _: int, now: int) -> After:
    return _queued(job, True) if job.due is not None and job.due <= now else After(False, job)


def _past_deadline(job: Job, now: int) -> bool:
    return job.state in WAITING and job.deadline is not None and job.deadline <= now


RULES: dict[str, Callable[[Job, int, int], After]] = {
    "enqueue": _enqueue,
    "enqueue_urgent": _enqueue_urgent,
    "enqueue_other": _enqueue_other,
    "claim": _claim,
    "begin": _begin,
    "renew": _renew,
    "fail_over": _fail_over,
    "release": _release,
    "park": _park,
    "succeed": _settle("succeeded"),
    "fail": _settle("failed"),
    "succeed_late": _settle("succeeded", late=True),
    "fail_late": _settle("failed", late=True),
    "take_end": _take_end,
    "cancel": _by_none("cancelled", lambda job, now: True),
    "expire": _by_none("expired", _past_deadline),
    "give_up": _by_none("failed", lambda job, now: _lapsed(job, now)),
    "sweep": _sweep,
    "wake": _wake,
}
BY_TOKEN = ("begin", "renew", "fail_over", "release", "park", "succeed", "fail", "succeed_late", "fail_late")
"""Steps that a worker does with its token; all others are anybody's."""
