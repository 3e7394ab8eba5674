"""A batch's totals: counts, money, and each provider's share."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from turnout.result import JobResult, JobStatus

Entry = dict[str, Any]
"""The numbers of one line, see `numbers_of`."""


@dataclass(slots=True)
class ProviderTally:
    """One provider's share. Failures are calls; jobs are those that it finished."""

    jobs: int = 0
    failures: int = 0
    failovers_in: int = 0
    """Jobs that it finished after another provider had failed."""
    failovers_out: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microusd: int = 0
    simulated: bool = False
    latencies: Counter[float] = field(default_factory=Counter)
    """Of its jobs, in seconds of three digits, so that any number of jobs gives at most some thousand values."""

    def latency(self, share: float) -> float | None:
        """The latency that this share of its jobs did not exceed; None if it has no jobs."""
        rank = math.ceil(share * self.latencies.total())
        for seconds, count in sorted(self.latencies.items()):
            rank -= count
            if rank <= 0 < count:
                return seconds
        return None


@dataclass(slots=True)
class Tally:
    """Counts over the lines of a batch."""

    lines: int = 0
    """Read so far."""
    done: Counter[str] = field(default_factory=Counter)
    """By status, `invalid` for lines that could not be run, or `refused` for those that nothing could serve."""
    resumed: int = 0
    """Of these, done before the command began."""
    shared: int = 0
    """Of these, answered with the answer of an identical line."""
    failovers: int = 0
    deferrals: int = 0
    cost_microusd: int = 0
    unsure_microusd: int = 0
    unpriced: int = 0
    """Calls of unknown price."""
    warned: int = 0
    """Answers with warnings."""
    providers: dict[str, ProviderTally] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        return self.done.total()

    @property
    def failed(self) -> int:
        return self.finished - self.done[JobStatus.SUCCEEDED.value]

    def provider(self, name: str) -> ProviderTally:
        return self.providers.setdefault(name, ProviderTally())

    def count(self, entry: Entry, by: int = 1) -> None:
        """Count one line, except its money; by -1: take it back. entry: from `numbers_of`."""
        self.done[entry["status"]] += by
        self.shared += by * entry.get("shared", False)
        self.failovers += by * entry.get("failovers", 0)
        self.deferrals += by * entry.get("deferrals", 0)
        failed_at = entry.get("failed_at", ())
        for name in failed_at:
            tally = self.provider(name)
            tally.failures += by
            tally.failovers_out += by * (entry["status"] == "succeeded" and name != entry["provider"])
        if (name := entry.get("provider")) is not None:
            tally = self.provider(name)
            tally.jobs += by
            tally.failovers_in += by * any(other != name for other in failed_at)
            tally.input_tokens += by * entry["in"]
            tally.output_tokens += by * entry["out"]
            tally.simulated |= entry.get("simulated", False)
            tally.latencies[float(f"{entry['s']:.3g}")] += by
            self.unpriced += by * entry.get("unpriced", False)
            self.warned += by * entry.get("warned", False)

    def pay(self, entry: Entry) -> None:
        """Count its money, which stays spent whatever happens to the line."""
        self.unsure_microusd += entry.get("unsure", 0)
        for name, cost_microusd in entry.get("costs", {}).items():
            self.cost_microusd += cost_microusd
            self.provider(name).cost_microusd += cost_microusd


def numbers_of(result: JobResult) -> Entry:
    """The numbers of one result that a tally needs; stored with the line, so that a resumed run counts it too."""
    costs: Counter[str] = Counter()
    for attempt in result.attempts:
        costs[attempt.provider] += attempt.cost_microusd
    numbers: Entry = {"status": result.status.value}
    sparse: Entry = {
        "failovers": result.failovers,
        "deferrals": result.deferrals,
        "unsure": result.unsure_microusd,
        "costs": +costs,
        "failed_at": [attempt.provider for attempt in result.attempts if not attempt.succeeded],
    }
    if (response := result.response) is not None:
        numbers |= {
            "provider": response.provider,
            "in": response.usage.input_tokens,
            "out": response.usage.output_tokens,
            "s": round(response.latency_s, 4),
        }
        sparse |= {
            "unpriced": response.cost_microusd is None,
            "simulated": response.simulated,
            "warned": bool(response.warnings),
        }
    return numbers | {name: value for name, value in sparse.items() if value}
