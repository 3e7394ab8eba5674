"""The search for an endpoint that has room for a job: rank, ask admission, wait in place or be parked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic_core import to_json

from turnout.ledger import Claimed
from turnout.request import Lane
from turnout.result import JobStatus
from turnout_workers.attempts.ceilings import OWN
from turnout_workers.attempts.closing import JobEnds
from turnout_workers.attempts.hedging import Permit
from turnout_workers.attempts.job import End, HeldJob
from turnout_workers.attempts.judging import Judge
from turnout_workers.attempts.parking import wait_group_of
from turnout_workers.attempts.parts import Parts
from turnout_workers.monitoring import tracing
from turnout_workers.routing.decision import MIN_WAIT_S, Action, Candidate, Decision, rank
from turnout_workers.routing.decision_log import to_json_dict
from turnout_workers.routing.estimate import amend
from turnout_workers.routing.sharing import TenantShares, headroom, waiting_position
from turnout_workers.state.store import Admission, Ask, Bid, Fence, Granted, NoRoom

SPREAD = 0.2
"""The most that is added to a wait, as a share of it."""
RECHECK_S = 5.0
"""The longest wait, doubled each time the job is parked again, though admission may name a later time: calls that use
less than they reserved make room earlier, and an operator or a new ceiling may at any time."""
MIXED_S = 600.0
"""How long after its acceptance a job that is refused here is kept for workers with another configuration, and one with
unknown fields for workers of a later release. By then a deploy is over, but some fleets differ forever."""


class EndpointSearch:
    """Looks for room, for any number of jobs at a time."""

    def __init__(self, parts: Parts, judge: Judge, ends: JobEnds) -> None:
        self._parts, self._judge, self._ends = parts, judge, ends
        self._parking = parts.parking
        self._last_seen: dict[Lane, float] = {}
        self._shares = TenantShares()

    def learn_from(self, claim: Claimed) -> None:
        """Note what a claim shows: its lane and tenant have work, another job has its turn, jobs are parked."""
        self._last_seen[claim.lane] = now = self._parts.fleet.now()
        self._shares.count(claim.tenant or "", now)
        self._parking.any_parked = claim.any_parked
        if claim.next_in_turn is not None:
            self._parking.publish_turn(claim.next_in_turn)

    async def find(self, job: HeldJob) -> Permit | End | None:
        """Look for an endpoint that has room, and wait in place if none has. None: look again."""
        now, job.decision_json = self._parts.fleet.now(), None
        job.ceilings = self._parts.ceilings.of_job(job)
        if job.deadline is not None and now >= job.deadline:
            return await self._ends.give_up(job, JobStatus.EXPIRED, "deadline", "the deadline has passed")
        profile = job.profile(priced=any(ceiling.limit_microusd is not None for ceiling in job.ceilings))
        job.wait_group = wait_group_of(profile, job.progress.tried, job.claim.tenant, job.claim.batch, now)
        until, for_room = self._parking.wait_of(job.wait_group)
        if not job.progress.deferrals and until > now:
            return await self._ends.park(job, until - now, wait_group=job.wait_group, for_room=for_room)
        strategy = self._parts.current.config.router.default_strategy
        snapshot, rng = self._parts.fleet.snapshot, self._parts.rng
        decision = rank(
            profile, snapshot, now, rng, default_strategy=strategy, tried=job.tried, over_ceiling=job.over_ceiling
        )
        if (refusal := decision.refusal) is not None:
            if not decision.own_ceiling_is_used_up and await self._is_for_others(job, now):
                return await self._wait(job, decision, None)
            self._parking.wake(job.wait_group, 2)
            job.decision_json = _decision_json(decision)
            code = "cost_ceiling" if decision.own_ceiling_is_used_up else "refused"
            return await self._ends.give_up(job, JobStatus.FAILED, code, str(refusal))
        if job.woken:
            decision, job.woken = decision.offering_busy(), False
        if decision.action is Action.GO:
            return await self._ask_admission(job, decision)
        if decision.only_money_is_missing:
            return await self._wait_for_money(job, decision)
        return await self._wait(job, decision, decision.wait_s)

    async def _is_for_others(self, job: HeldJob, now: float) -> bool:
        """Whether workers with another configuration may serve a job that can't be served here. This worker, or they,
        will follow the change soon. They are listed now, because an earlier list may be older than the change."""
        if now - job.claim.accepted_at >= MIXED_S:
            return False
        versions = (await self._parts.send(self._parts.ledger.workers())).values()
        return any(version != self._parts.current.settings.version for version in versions)

    async def _ask_admission(self, job: HeldJob, decision: Decision) -> Permit | End | None:
        """Ask admission for room at one of the candidates; if none has room, wait."""
        candidates = decision.bids()
        retry = job.only_retry(candidates)
        with tracing.span("turnout.decide", **{"turnout.strategy": decision.strategy.value}) as span:
            admission = await self.admit(job, retry or candidates)
            if span:
                span.set_attribute("turnout.excluded", len(decision.exclusions))
                span.set_attribute("turnout.endpoint", getattr(admission, "endpoint_id", ""))
        if isinstance(admission, Granted):
            self._shares.count(job.claim.tenant or "", decision.at, 1)
            return self._found(job, decision, candidates, admission)
        if not isinstance(admission, NoRoom):
            return End("skipped", "the lease was lost")
        job.set_retry(None)
        job.over_ceiling |= admission.over_ceiling
        # The endpoint went out, or a ceiling was reached, which no snapshot shows: ask the others immediately.
        if retry or admission.over_ceiling:
            return None
        wait_s = None if admission.retry_at is None else max(MIN_WAIT_S, admission.retry_at - admission.at)
        if decision.at - decision.snapshot_age_s < job.refused_at and decision.has_more_than(candidates):
            # These went out after the snapshot was taken: others may have room sooner.
            job.refused_at = min(job.refused_at, admission.at)
            next_snapshot_s = 2 * self._parts.fleet.every_s  # it will show what admission knew
            wait_s = next_snapshot_s if wait_s is None else min(wait_s, next_snapshot_s)
        return await self._wait(job, decision, wait_s, admission.reasons)

    def _found(self, job: HeldJob, decision: Decision, offered: Sequence[Candidate], grant: Granted) -> Permit:
        permit = self._judge.permit(job, decision, offered, grant, alone=job.claim.stream)
        before, chosen = job.progress.attempts, permit.chosen.endpoint
        if before and before[-1].provider != chosen.provider:
            self._parts.metrics.moved(before[-1], chosen.provider)
        job.decision_json = _decision_json(decision, chosen.id)
        self._parking.wake(job.wait_group)
        return permit

    async def _wait(
        self, job: HeldJob, decision: Decision, wait_s: float | None, no_room: Mapping[str, str] | None = None
    ) -> End | None:
        """Wait in place if the job still may, otherwise park it. no_room: what admission answered, if asked.

        wait_s: None if only an operator, a new ceiling or another worker can help.
        """
        for_room = wait_s is not None
        max_wait_s = RECHECK_S * 2 ** min(job.progress.deferrals, 5)
        wait_s = max_wait_s if wait_s is None else min(wait_s, max_wait_s)
        wait_s *= 1 + SPREAD * self._parts.rng.random()  # so that jobs that wait for the same time spread out
        group = job.wait_group if self._parking.any_parked else ""
        if wait_s > job.in_place_left_s or group in self._parking.in_place:
            self._parking.note_wait(job.wait_group, decision.at + wait_s, decision.at, for_room)
            job.decision_json = _decision_json(decision, no_room=no_room)
            return await self._ends.park(job, wait_s, wait_group=job.wait_group, for_room=for_room)
        job.in_place_left_s -= wait_s
        await self._parking.wait_in_place(group, wait_s)
        return None

    async def _wait_for_money(self, job: HeldJob, decision: Decision) -> End | None:
        """End a job if its own ceiling or its batch's leaves too little for every endpoint. Others wait for the next
        day or month, or for an operator."""
        if all(account.startswith(OWN) for account in job.over_ceiling.values()):
            self._parking.wake(job.wait_group, 2)
            return await self._ends.at_ceiling(job, next(iter(job.over_ceiling.values())))
        ends = any(exclusion.until for exclusion in decision.options.exclusions)
        return await self._wait(job, decision, decision.wait_s if ends else None)

    async def admit(self, job: HeldJob, candidates: Sequence[Candidate], *, second: bool = False) -> Admission:
        parts, now = self._parts, self._parts.fleet.now()
        bids = tuple(Bid.of(c, parts.ceilings.of_provider(c.endpoint.provider)) for c in candidates)
        lane, since = job.claim.lane, job.progress.waiting_since
        lane_share = headroom(lane, self._last_seen, now, parts.current.reserved)
        share = self._shares.headroom(job.claim.tenant or "", now)
        # No room is kept for a tenant that had more than its share, nor for a second call.
        position, keeps_room = waiting_position(lane, since if share == 1 and not second else None, now)
        first = bids[0].endpoint_id
        amend(parts.fleet.snapshot, first, lambda estimate: estimate.begun(now))  # so that simultaneous jobs spread
        admission = await parts.store.admit(
            Ask(
                lease_id=f"{job.id}:{job.claim.token}:{len(job.progress.attempts) + second}",
                bids=bids,
                ttl_s=parts.heartbeat.ttl_s,
                ceilings=job.ceilings,
                fence=Fence(job.id, job.claim.token, job.claim.batch),
                headroom=lane_share * share,
                position=position,
                keeps_room=keeps_room,
            )
        )
        if isinstance(admission, Granted) and admission.endpoint_id != first:
            amend(parts.fleet.snapshot, admission.endpoint_id, lambda estimate: estimate.begun(now))
        return admission


def _decision_json(decision: Decision, called: str | None = None, no_room: Mapping[str, str] | None = None) -> bytes:
    return to_json(to_json_dict(decision, called, no_room))
