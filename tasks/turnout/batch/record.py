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
"""Prefix of the ids of all detached batches, and of no `turnout run`'s."""
KEPT_S = 7 * 86_400
"""How long a batch is kept after it was submitted or, if it takes longer, after its end."""


class State(StrEnum):
    FEEDING = "feeding"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class Record(Value, extra="ignore"):
    """A batch at a glance. Aliases are its names in Redis, where another release may have more."""

    id: str
    source: str
    state: State
    submitted_at: float = Field(validation_alias="at")
    lines: int
    jobs: int
    """Lines with a job of their own; the others are invalid, or share the job of an identical line."""
    shared: int
    fed: int
    chunks_fed: int = Field(validation_alias="next")
    max_cost_microusd: int | None = None
    settled: dict[str, int]
    """Ended jobs, by status."""

    @property
    def under_way(self) -> int:
        return max(0, self.fed - sum(self.settled.values()))

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by state, and the lines without one of their own."""
        counts, ended = Counter(self.settled), sum(self.settled.values())
        counts["under_way"] = self.under_way
        counts["cancelled" if self.state is State.CANCELLED else "waiting"] += self.jobs - max(self.fed, ended)
        counts["invalid"] = self.lines - self.jobs - self.shared
        counts["shared"] = self.shared
        return dict(+counts)

    @property
    def to_feed(self) -> bool:
        """There is more to feed."""
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
    """None: there is no such batch. Its decoding raises TurnoutError for one that can't be read."""

    def decode(reply: Mapping[bytes, bytes]) -> Record | None:
        fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in reply.items()}
        settled = {status.value: count for status in JobStatus if (count := fields.pop(status, "0")) != "0"}
        try:
            return Record.model_validate({"id": id, "settled": settled, **fields}) if fields else None
        except ValidationError as error:
            what = f"batch {printable(id)} was changed in Redis, or is of another release"
            raise TurnoutError(f"{what}: {explain(error)}") from None

    return Operation(("HGETALL", keys.batch(id)), decode)


def read_or_log(keys: Keys, id: str) -> Operation[Record | None]:
    """The same for many batches: one that can't be read is logged, so that the others can be used."""
    operation = read_record(keys, id)

    def decode(reply: Any) -> Record | None:
        try:
            return operation.decode(reply)
        except TurnoutError as error:
            logger.error("%s", error)
            return None

    return replace(operation, decode=decode)
