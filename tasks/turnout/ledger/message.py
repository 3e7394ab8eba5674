"""The Celery message of a job: protocol 2, as kombu's Redis transport wants it, with no prompt in it.

The scripts in `lua/` push it in the same step in which they queue the job, and fill in what stands in angle brackets
(`shared.lua`). Callbacks and the like that a plain Celery app has sent with a job are put into each of its messages.
"""

from __future__ import annotations

import json

TASK = "turnout.infer"
ORIGIN = "turnout"
"""Who has published it: the ledger, and no app."""

TEMPLATE = json.dumps(
    {
        "headers": {
            "place": "<place>",
            "lang": "py",
            "task": TASK,
            "id": "<id>",
            "root_id": "<id>",
            "retries": "<retries>",
            # What Flower and Celery's events show.
            "argsrepr": "<lane> · <label>",
            "origin": ORIGIN,
            "ignore_result": True,
        },
        "body": '[["<bodyid>"],{},<embed>]',
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {
            "correlation_id": "<id>",
            "delivery_info": {"exchange": "", "routing_key": "<lane>"},
            "priority": 0,
            "delivery_tag": "<tag>",
        },
    },
    separators=(",", ":"),
    ensure_ascii=False,
)
"""A JSON text with marks in it. Two of them stand for numbers, and lose their quotes."""

for _number in ("place", "retries"):
    TEMPLATE = TEMPLATE.replace(f'"<{_number}>"', f"<{_number}>")
