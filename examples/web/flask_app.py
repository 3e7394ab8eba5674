"""Turnout behind Flask: submit, poll, read the answer as it comes, hear by webhook when it is done.

flask --app flask_app run      # with REDIS_URL set, and a `turnout worker` on the same Redis
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from flask import Flask, Response, abort, request, stream_with_context

from turnout import Client, Conflict, IntakeRefused, JobError, Restarted
from turnout.webhook import BadSignature, verified

SECRET = os.environ.get("WEBHOOK_SECRET")  # that of [webhooks.app] in the workers' turnout.toml
WEBHOOK = "app" if SECRET else None
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""For streams: proxies such as nginx would otherwise hold pieces back."""

app = Flask(__name__)
client = Client()  # one for the whole process: threads share it


@app.post("/questions")
def ask() -> tuple[dict[str, str], int]:
    asked = request.get_json()
    try:
        job = client.submit(
            asked["prompt"], model="llama-3.3-70b", stream=True, idempotency_key=asked["order"], webhook=WEBHOOK
        )
    except Conflict as error:
        abort(409, str(error))
    except IntakeRefused as error:
        abort(503 if error.retryable else 422, str(error))
    return {"id": job.id}, 202


@app.get("/questions/<job_id>")
def look(job_id: str) -> dict[str, str | None]:
    job = client.job(job_id)
    try:
        status = job.status()
    except LookupError as error:
        abort(404, str(error))
    result = job.result()
    return {"status": status, "text": result.response.text if result and result.response else None}


@app.get("/questions/<job_id>/stream")
def stream(job_id: str) -> Response:
    def events() -> Iterator[str]:
        try:
            for piece in client.job(job_id).stream(idle_s=15):
                event = "restart" if isinstance(piece, Restarted) else "token"
                yield f"event: {event}\ndata: {json.dumps(piece)}\n\n"
        except (JobError, LookupError) as error:  # failed, expired or cancelled; or unknown
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        else:
            yield "event: done\ndata: {}\n\n"

    return Response(stream_with_context(events()), mimetype="text/event-stream", headers=UNBUFFERED)


told: dict[str, str] = {}
"""A real application would write to its database."""


@app.post("/hooks/turnout")
def hook() -> tuple[str, int]:
    """Called by the workers when a job has ended. It may come twice."""
    try:
        message = verified(request.headers, request.get_data(), SECRET or "")
    except BadSignature as error:
        abort(401, str(error))
    told[message["data"]["id"]] = message["type"]
    return "", 204
