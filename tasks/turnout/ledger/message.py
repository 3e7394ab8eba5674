"""The Celery message of a job: protocol 2, as kombu's Redis transport wants it, with no prompt in it.

The scripts in `lua/` push it as it stands; when a job goes back to its lane's front they set `front` to 1 and
`retries` to how often it came back. So their order and spelling in the text matter, and are tested.
"""

from __future__ import annotations

import json

from turnout.request import Lane

TASK = "turnout.infer"


def celery_message(job_id: str, lane: Lane, label: str, embed: str | None = None) -> str:
    """The message of one job. `embed`: callbacks, chord and such, of a job that a plain Celery app has sent."""
    tail = embed or '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'
    shown = f"{lane} · {label}"
    message = {
        "headers": {
            "front": 0,
            "id": job_id,
            "retries": 0,
            "lang": "py",
            "task": TASK,
            "root_id": job_id,
            "parent_id": None,
            "group": None,
            "eta": None,
            "expires": None,
            "timelimit": [None, None],
            "argsrepr": shown,
            "kwargsrepr": "",
            "origin": "turnout",
            "ignore_result": True,
        },
        "body": f"[[{json.dumps(job_id)}],{{}},{tail}]",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {
            "correlation_id": job_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": lane.value},
            "priority": 0,
            "delivery_tag": job_id,
        },
    }
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
