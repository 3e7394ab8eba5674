"""Housekeeping's part of the ledger: lists of jobs that need something done, and what to do with each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnout.ledger.content import Hook, read_hook
from turnout.ledger.job import Settlement
from turnout.ledger.operations import Operations, event_json, ms, nothing, texts
from turnout.ledger.script import Call
from turnout.request import CONTRACT_VERSION, Lane
from turnout.result import JobResult, JobStatus


class Upkeep(Operations):
    """Each list gives job ids, at most `limit` of them."""

    def take_mutex(self, owner: str, for_s: float) -> Call[bool]:
        """Let `owner` do the housekeeping, and nobody else for so long; tells whether it may.

        Each contract has its own: a worker of another release leaves our records untouched, and so must not keep us
        from looking after them for as long as it lives.
        """
        mutex = self.keys.mutex(f"housekeeping:{CONTRACT_VERSION}")
        return self.call("take_mutex", owner, ms(for_s), decode=bool, keys=[mutex])

    def due(self, limit: int) -> Call[list[str]]:
        """The first parked job of each line whose time has come. `wake` them in this order: the last one woken is the
        first in its lane."""
        return self.call("firsts", limit, decode=lambda reply: texts(reply[::-1]))

    def wake(self, job_id: str, lane: Lane, next_s: float | None = None) -> Call[bool]:
        """Publish a parked job at the front of its lane; tells whether it did.

        next_s: wake it only if its line is due, and let the next of the line follow after so long, unless this one
        brings it earlier. None: wake it in any case, for there is room.
        """
        after_ms = "" if next_s is None else ms(next_s)
        return self.call("wake", job_id, after_ms, decode=bool, job=job_id, lane=lane)

    def spare(self, limit: int) -> Call[list[str]]:
        """Give out turns that came free without a claim, to the jobs of this list: `bring` them."""
        return self.call("spare", limit, decode=texts)

    def bring(self, job_id: str, lane: Lane) -> Call[bool]:
        """Publish a job that waited in line and whose turn has come."""
        return self.call("bring", job_id, decode=bool, job=job_id, lane=lane)

    def lapsed(self, limit: int) -> Call[list[str]]:
        """Jobs whose lease is over."""
        return self._due(self.keys.leases, limit)

    def sweep(self, job_id: str, lane: Lane, death: int, poison: int) -> Call[str]:
        """Take a job back whose lease is over. Returns `queued`, `none` for nothing to do, or `poison`: give it up.

        A lapse counts `death`, or 1 if its worker is seen to live; it is poison from `poison` on.
        """
        return self.call("sweep", job_id, death, poison, decode=bytes.decode, job=job_id, lane=lane)

    def give_up(self, job_id: str, why: str, result_ttl_s: float, batch: str | None) -> Call[Settlement]:
        """Fail a job of which `sweep` has said that it is poison."""
        result = JobResult.unanswered(job_id, JobStatus.FAILED, "poison", why)
        return self.end("sweep", result, result_ttl_s, batch)

    def overdue(self, limit: int) -> Call[list[str]]:
        """Live jobs whose deadline has passed."""
        return self._due(self.keys.deadlines, limit)

    def expire(self, job_id: str, result_ttl_s: float, batch: str | None) -> Call[Settlement]:
        """Expire a job that waits. One that is being worked on is its worker's to expire."""
        late = "its deadline passed before it was done"
        result = JobResult.unanswered(job_id, JobStatus.EXPIRED, "deadline", late)
        return self.end("expire", result, result_ttl_s, batch)

    def lost(self, lane: Lane, limit: int) -> Call[list[str]]:
        """Queued jobs that seem to have no message any more: candidates for `republish`."""
        return self.call("lost", limit, decode=texts, lane=lane)

    def republish(self, job_id: str, lane: Lane, missing_s: float) -> Call[bool]:
        """Publish a job again that has been on the list of `lost` for so long; tells whether it did."""
        return self.call("republish", job_id, ms(missing_s), decode=bool, job=job_id, lane=lane)

    def alive(self, worker: str, version: str, slots: int, silence_s: float, results_s: float) -> Call[None]:
        """Note that a worker lives, which version of the configuration it follows, how many jobs it has room for, and
        how long it keeps results. Workers that have been silent for `silence_s` are forgotten."""
        return self.call("alive", f"{worker} {version} {slots}", ms(silence_s), max(1, ms(results_s)), decode=nothing)

    # --- webhooks ---------------------------------------------------------------------------------------

    def due_hooks(self, limit: int) -> Call[list[str]]:
        """Settled jobs whose webhook is to be called now."""
        return self._due(self.keys.hooks, limit)

    def take_hook(self, job_id: str, waits_s: Sequence[float]) -> Call[Hook | None]:
        """Reserve the webhook's next call for this worker. None: another worker has it, or it is done.

        waits_s: how long after its first call, its second … it is due again; each longer than a call takes.
        """
        waits_ms = map(ms, waits_s)
        return self.call("take_hook", job_id, *waits_ms, decode=self.opening(read_hook, job_id), job=job_id)

    def end_hook(self, job_id: str, event: Mapping[str, Any]) -> Call[None]:
        """The webhook was called, or given up."""
        return self.call("end_hook", job_id, event_json(event), decode=nothing, job=job_id)

    def _due(self, index: str, limit: int) -> Call[list[str]]:
        return self.call("due", limit, decode=texts, keys=[index])
