"""Turnout in a Flask app: submit, poll, stream, be told.    flask --app examples/web/flask_app.py run"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, abort, request

from turnout import Client, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import NotSigned, verified

app = Flask(__name__)
turnout = Client()  # at REDIS_URL; threads share it, and it connects when it is first used
told: dict[str, str] = {}  # in place of your database


@app.post("/questions")
def ask() -> tuple[dict[str, str], int]:
    options = {"stream": True, "webhook": os.environ.get("ANSWERS_WEBHOOK")}
    try:
        job = turnout.submit(
            request.get_json()["text"], idempotency_key=request.headers.get("Idempotency-Key"), **options
        )
    except Conflict as error:
        abort(409, str(error))
    except IntakeRefused as error:
        abort(503, str(error))
    return {"id": job.id}, 202


@app.get("/questions/<job_id>")
def answer(job_id: str) -> dict[str, Any]:
    job = turnout.job(job_id)
    try:
        status, result = job.status(), job.result()
    except LookupError as error:
        abort(404, str(error))
    return {"status": status, "text": result.response.text if result and result.response else None}


@app.get("/questions/<job_id>/stream")
def stream(job_id: str) -> Response:
    def events() -> Iterator[str]:
        try:
            for piece in turnout.job(job_id).stream():
                yield event("restart" if isinstance(piece, Restarted) else "piece", piece)
            yield event("end", "")
        except (TurnoutError, LookupError) as error:
            yield event("failed", type(error).__name__)

    return Response(events(), mimetype="text/event-stream")


@app.post("/answers")
def answered() -> tuple[str, int]:
    try:
        result = verified(request.get_data(), request.headers, os.environ["ANSWERS_SECRET"])
    except NotSigned as error:
        abort(401, str(error))
    told[result.id] = result.status
    return "", 204


def event(name: str, piece: str) -> str:
    return f"event: {name}\ndata: {json.dumps(piece)}\n\n"
