"""The Celery message of a job: protocol 2, as kombu's Redis transport expects it, without the prompt.

The scripts in `lua/` push it in the same step in which they queue the job, and fill in the marks in angle brackets
(`shared.lua`). Callbacks and the like that a plain Celery app sent with a job are put into each of its messages.
"""

from __future__ import annotations

import json

TASK = "turnout.infer"
ORIGIN = "turnout"
"""The publisher: the ledger, not an app."""

TEMPLATE = json.dumps(
    {
        "headers": {
            "place": "<position>",  # on the lane's list, see `shared.lua`
            "lang": "py",
            "task": TASK,
            "id": "<id>",
            "root_id": "<id>",
            "retries": "<retries>",
            # Shown by Flower and in Celery's events.
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
"""JSON with marks. Two of them stand for numbers, and lose their quotes."""

for _number in ("position", "retries"):
    TEMPLATE = TEMPLATE.replace(f'"<{_number}>"', f"<{_number}>")
