"""Turnout behind Flask: submit, poll, stream the answer, and receive a webhook when it is done.

flask --app flask_app run      # with REDIS_URL set, and a `turnout worker` on the same Redis
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request
from pydantic import BaseModel, ValidationError
from redis import RedisError

from turnout import Client, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import BadSignature, verified

logger = logging.getLogger(__name__)
SECRET = os.environ.get("WEBHOOK_SECRET")  # the secret of [webhooks.app] in the workers' turnout.toml
WEBHOOK = "app" if SECRET else None
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers for streams: proxies such as nginx would otherwise hold pieces back."""

app = Flask(__name__)
client = Client()  # one for the whole process: shared by its threads
Answer = tuple[dict[str, Any], int]


class Question(BaseModel):
    prompt: str
    order: str
    """A request that arrives twice with the same order is the same job."""


@app.errorhandler(RedisError)
def away(error: RedisError) -> Answer:
    """Jobs that were accepted are safe, and `order` makes it safe to ask again."""
    logger.warning("Redis is away: %s", error)
    return {"error": "try again in a moment"}, 503


@app.errorhandler(ValidationError)
def wrong(error: ValidationError) -> Answer:
    return {"error": [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]}, 422


@app.post("/questions")
def ask() -> Answer:
    question = Question.model_validate_json(request.get_data())
    try:
        job = client.submit(
            question.prompt, model="gpt-oss-120b", stream=True, idempotency_key=question.order, webhook=WEBHOOK
        )
    except Conflict as error:
        return {"error": str(error)}, 409
    except IntakeRefused as error:
        return {"error": str(error)}, 503 if error.retryable else 422
    return {"id": job.id}, 202


@app.get("/questions/<job_id>")
def look(job_id: str) -> Answer:
    job = client.job(job_id)
    try:
        status = job.status()
    except LookupError as error:
        return {"error": str(error)}, 404
    result = job.result()
    return {"status": status, "text": result.response.text if result and result.response else None}, 200


@app.get("/questions/<job_id>/stream")
def stream(job_id: str) -> Response:
    def events() -> Iterator[str]:
        try:
            for piece in client.job(job_id).stream(idle_s=15):
                event = "restart" if isinstance(piece, Restarted) else "token"
                yield f"event: {event}\ndata: {json.dumps(piece)}\n\n"
            yield "event: done\ndata: {}\n\n"
        except (TurnoutError, LookupError) as error:  # failed, expired, cancelled or unreadable; or unknown
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        except RedisError as error:  # without an end, the browser reconnects
            logger.warning("a stream of job %s was cut off: %s", job_id, error)

    return Response(events(), mimetype="text/event-stream", headers=UNBUFFERED)


ended: dict[str, str] = {}
"""A real application would write to its database."""


@app.post("/hooks/turnout")
def hook() -> Answer:
    """Called by the workers when a job has ended, possibly twice."""
    try:
        message = verified(request.headers, request.get_data(), SECRET)
    except BadSignature as error:
        return {"error": str(error)}, 401
    ended[message["data"]["id"]] = message["type"]
    return {}, 204
