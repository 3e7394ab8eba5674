"""How far a job has come over its attempts: what the ledger keeps between one claim and the next."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Self

from pydantic_core import to_json

from turnout.request import InferenceRequest
from turnout.result import Attempt
from turnout_workers.routing.profile import JobProfile


@dataclass(frozen=True, slots=True)
class Progress:
    """Carried from attempt to attempt, also to other workers, so that each knows what was tried."""

    attempts: tuple[Attempt, ...] = ()
    tried: frozenset[str] = frozenset()
    """Endpoint ids that failed this job in the current round."""
    unsuited: frozenset[str] = frozenset()
    """Endpoint ids that can't do this job: too small a context, a parameter they don't take."""
    spent_attempts: int = 0
    """Attempts that count, of which a job has only so many."""
    failovers: int = 0
    deferrals: int = 0
    not_before: float = 0.0
    """Unix time: what a plain Celery app has asked for as `eta` or `countdown`."""

    @property
    def cost_microusd(self) -> int:
        return sum(attempt.cost_microusd for attempt in self.attempts)

    @property
    def unsure_microusd(self) -> int:
        return sum(attempt.unsure_microusd for attempt in self.attempts)

    @property
    def failures(self) -> dict[str, int]:
        """By endpoint id, over all rounds."""
        counts: dict[str, int] = {}
        for attempt in self.attempts:
            if not attempt.succeeded:
                counts[attempt.endpoint] = counts.get(attempt.endpoint, 0) + 1
        return counts

    def profile(
        self,
        request: InferenceRequest,
        *,
        accepted_at: float,
        deadline: float | None = None,
        priced: bool = False,
        pinned: str | None = None,
    ) -> JobProfile:
        """The job as the router sees it by now; see `JobProfile.of`."""
        if self.attempts and not request.constraints.allow_fallback:
            pinned = self.attempts[0].endpoint
        return JobProfile.of(
            request,
            accepted_at=accepted_at,
            deadline=deadline,
            spent_microusd=self.cost_microusd + self.unsure_microusd,
            failures=self.failures,
            excluded=self.unsuited,
            pinned=pinned,
            priced=priced,
        )

    def after(self, attempt: Attempt, *, spends: bool, unsuited: bool) -> Self:
        """After a call. `spends`: it was an attempt that counts. `unsuited`: its endpoint can't do this job."""
        here = frozenset({attempt.endpoint})
        return replace(
            self,
            attempts=(*self.attempts, attempt),
            tried=self.tried | here,
            unsuited=self.unsuited | here if unsuited else self.unsuited,
            spent_attempts=self.spent_attempts + spends,
        )

    def failed_over(self) -> Self:
        return replace(self, failovers=self.failovers + 1)

    def deferred(self, new_round: bool = False) -> Self:
        """Parked. In a new round every endpoint may be tried again."""
        return replace(self, deferrals=self.deferrals + 1, tried=frozenset() if new_round else self.tried)

    def to_json(self) -> str:
        return to_json(
            {
                "attempts": [attempt.model_dump(mode="json", exclude_defaults=True) for attempt in self.attempts],
                "tried": sorted(self.tried),
                "unsuited": sorted(self.unsuited),
                "spent_attempts": self.spent_attempts,
                "failovers": self.failovers,
                "deferrals": self.deferrals,
                "not_before": self.not_before,
            }
        ).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        if not text:
            return cls()
        stored = json.loads(text)
        return cls(
            tuple(Attempt.model_validate(attempt) for attempt in stored["attempts"]),
            frozenset(stored["tried"]),
            frozenset(stored["unsuited"]),
            stored["spent_attempts"],
            stored["failovers"],
            stored["deferrals"],
            stored.get("not_before", 0.0),
        )
