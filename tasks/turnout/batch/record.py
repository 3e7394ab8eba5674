"""The record of a detached batch: what it is, how far it has been fed, and how its jobs have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from turnout.ledger import Call, Keys
from turnout.result import JobStatus
from turnout.value import Value

DETACHED = "batch-"
"""How the ids of all detached batches begin, and of no `turnout run`'s."""


HALF = "if its `turnout batch submit` has ended, only half of it was handed over: delete it, and submit it again"
"""What to do about a batch that is still `submitting`."""


class State(StrEnum):
    SUBMITTING = "submitting"
    FEEDING = "feeding"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class Record(Value, extra="ignore"):
    """A batch at a glance. Aliases are names in Redis; another release may have more."""

    id: str
    source: str
    state: State
    submitted_at: float = Field(validation_alias="at")
    lines: int = 0
    jobs: int = 0
    """Lines that are requests of their own; the others are bad, or share the job of an identical one."""
    shared: int = 0
    fed: int
    chunks_fed: int = Field(validation_alias="next")
    max_cost_microusd: int | None = None
    settled: dict[str, int]
    """Jobs that have ended, by how."""

    @property
    def under_way(self) -> int:
        return max(0, self.fed - sum(self.settled.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by where they stand, and the lines that are none of their own."""
        counts = Counter(self.settled)
        counts["under_way"] = self.under_way
        counts["cancelled" if self.state is State.CANCELLED else "waiting"] += self.jobs - self.fed
        counts["invalid"] = self.lines - self.jobs - self.shared
        counts["shared"] = self.shared
        return dict(+counts)

    @property
    def ended(self) -> bool:
        return self.state is not State.SUBMITTING and not {"under_way", "waiting"} & self.counts.keys()

    @property
    def complete(self) -> bool:
        """Every line has an answer."""
        return self.settled.get(JobStatus.SUCCEEDED, 0) + self.shared == self.lines


def read_record(keys: Keys, id: str) -> Call[Record | None]:
    """None: there is no such batch."""

    def decode(reply: Mapping[bytes, bytes]) -> Record | None:
        told = {name.decode(): value.decode() for name, value in reply.items()}
        settled = {status.value: count for status in JobStatus if int(count := told.pop(status, "0"))}
        return Record.model_validate({"id": id, "settled": settled, **told}) if told else None

    return Call(("HGETALL", keys.batch(id)), decode)
