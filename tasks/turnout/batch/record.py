"""The record of a detached batch: what it is, how far it has been fed, and how its jobs have ended."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError

from turnout.errors import TurnoutError
from turnout.ledger import Keys, Operation
from turnout.printable import printable
from turnout.result import JobStatus
from turnout.validation import explain
from turnout.value import Value

logger = logging.getLogger(__name__)

DETACHED = "batch-"
"""How the ids of all detached batches begin, and of no `turnout run`'s."""
KEPT_S = 7 * 86_400
"""How long a batch is kept, from when it is submitted or, if it takes longer, from its end."""


class State(StrEnum):
    FEEDING = "feeding"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class Record(Value, extra="ignore"):
    """A batch at a glance. Aliases are names in Redis; another release may have more."""

    id: str
    source: str
    state: State
    submitted_at: float = Field(validation_alias="at")
    lines: int
    jobs: int
    """Lines that are requests of their own; the others are bad, or share the job of an identical one."""
    shared: int
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
        counts, ended = Counter(self.settled), sum(self.settled.values())
        counts["under_way"] = self.under_way
        counts["cancelled" if self.state is State.CANCELLED else "waiting"] += self.jobs - max(self.fed, ended)
        counts["invalid"] = self.lines - self.jobs - self.shared
        counts["shared"] = self.shared
        return dict(+counts)

    @property
    def to_feed(self) -> bool:
        """There is more to be fed."""
        return self.state is not State.CANCELLED and self.fed < self.jobs

    @property
    def ended(self) -> bool:
        return not {"under_way", "waiting"} & self.counts.keys()

    @property
    def standing(self) -> str:
        """Its state, for people and programs."""
        return "ended" if self.ended else self.state.value

    @property
    def complete(self) -> bool:
        """Every line has an answer."""
        return self.settled.get(JobStatus.SUCCEEDED, 0) + self.shared == self.lines


def read_record(keys: Keys, id: str) -> Operation[Record | None]:
    """None: there is no such batch. Raises TurnoutError for one that can't be read."""

    def decode(reply: Mapping[bytes, bytes]) -> Record | None:
        told = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in reply.items()}
        settled = {status.value: count for status in JobStatus if (count := told.pop(status, "0")) != "0"}
        try:
            return Record.model_validate({"id": id, "settled": settled, **told}) if told else None
        except ValidationError as error:
            what = f"batch {printable(id)} was changed in Redis, or is of another release"
            raise TurnoutError(f"{what}: {explain(error)}") from None

    return Operation(("HGETALL", keys.batch(id)), decode)


def read_if_known(keys: Keys, id: str) -> Operation[Record | None]:
    """The same among others, from which one that can't be read is to keep nobody: the log tells of it."""
    call = read_record(keys, id)

    def decode(reply: Any) -> Record | None:
        try:
            return call.decode(reply)
        except TurnoutError as error:
            logger.error("%s", error)
            return None

    return replace(call, decode=decode)
