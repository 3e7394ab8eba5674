"""The job ledger: the truth about every job, in Redis. See `ledger.py` for its states."""

from turnout.ledger.job import (
    LIVE,
    Claimed,
    Ending,
    Enqueued,
    Facts,
    Hook,
    Intake,
    NewJob,
    NotClaimed,
    Piece,
    Settlement,
)
from turnout.ledger.keys import Keys
from turnout.ledger.ledger import Ledger
from turnout.ledger.script import Call, Coalescer, Read, Script, run

__all__ = [
    "LIVE",
    "Call",
    "Claimed",
    "Coalescer",
    "Ending",
    "Enqueued",
    "Facts",
    "Hook",
    "Intake",
    "Keys",
    "Ledger",
    "NewJob",
    "NotClaimed",
    "Piece",
    "Read",
    "Script",
    "Settlement",
    "run",
]
