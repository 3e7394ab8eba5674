"""The job ledger: the truth about every job, in Redis. See `ledger.py` for its states."""

from turnout.ledger.content import DueWebhook, Piece, TakenEnd, WebhookDelivery, open_result, write_result
from turnout.ledger.job import LIVE, Claimed, Ending, Enqueued, Facts, Intake, NewJob, NotClaimed, Settlement
from turnout.ledger.keys import Keys
from turnout.ledger.ledger import Ledger
from turnout.ledger.script import Operation, Script
from turnout.ledger.sealing import Keyring
from turnout.ledger.sending import Coalescer, run

__all__ = [
    "LIVE",
    "Claimed",
    "Coalescer",
    "DueWebhook",
    "Ending",
    "Enqueued",
    "Facts",
    "Intake",
    "Keyring",
    "Keys",
    "Ledger",
    "NewJob",
    "NotClaimed",
    "Operation",
    "Piece",
    "Script",
    "Settlement",
    "TakenEnd",
    "WebhookDelivery",
    "open_result",
    "run",
    "write_result",
]
