"""Turnout behind FastAPI: submit, poll, stream the answer, and receive a webhook when it is done.

uvicorn fastapi_app:app        # with REDIS_URL set, and a `turnout worker` on the same Redis
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from redis import RedisError

from turnout import AsyncClient, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import BadSignature, verified

logger = logging.getLogger(__name__)
SECRET = os.environ.get("WEBHOOK_SECRET")  # the secret of [webhooks.app] in the workers' turnout.toml
WEBHOOK = "app" if SECRET else None
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers for streams: proxies such as nginx would otherwise hold pieces back."""


class Question(BaseModel):
    prompt: str
    order: str
    """A request that arrives twice with the same order is the same job."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient() as client:
        app.state.turnout = client
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(RedisError)
async def away(_: Request, error: RedisError) -> JSONResponse:
    """Jobs that were accepted are safe, and `order` makes it safe to ask again."""
    logger.warning("Redis is away: %s", error)
    return JSONResponse({"detail": "try again in a moment"}, 503)


@app.post("/questions", status_code=202)
async def ask(question: Question) -> dict[str, str]:
    try:
        job = await app.state.turnout.submit(
            question.prompt, model="gpt-oss-120b", stream=True, idempotency_key=question.order, webhook=WEBHOOK
        )
    except Conflict as error:
        raise HTTPException(409, str(error)) from None
    except IntakeRefused as error:
        raise HTTPException(503 if error.retryable else 422, str(error)) from None
    return {"id": job.id}


@app.get("/questions/{job_id}")
async def look(job_id: str) -> dict[str, str | None]:
    job = app.state.turnout.job(job_id)
    try:
        status = await job.status()
    except LookupError as error:
        raise HTTPException(404, str(error)) from None
    result = await job.result()
    return {"status": status, "text": result.response.text if result and result.response else None}


@app.get("/questions/{job_id}/stream")
async def stream(job_id: str) -> StreamingResponse:
    """Server-sent events: `token` with text as JSON, `restart` when it starts over, then `done` or `failed`."""

    async def events() -> AsyncIterator[str]:
        try:
            async for piece in app.state.turnout.job(job_id).stream(idle_s=15):
                event = "restart" if isinstance(piece, Restarted) else "token"
                yield f"event: {event}\ndata: {json.dumps(piece)}\n\n"
            yield "event: done\ndata: {}\n\n"
        except (TurnoutError, LookupError) as error:  # failed, expired, cancelled or unreadable; or unknown
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        except RedisError as error:  # without an end, the browser reconnects
            logger.warning("a stream of job %s was cut off: %s", job_id, error)

    return StreamingResponse(events(), media_type="text/event-stream", headers=UNBUFFERED)


ended: dict[str, str] = {}
"""A real application would write to its database."""


@app.post("/hooks/turnout", status_code=204)
async def hook(request: Request) -> None:
    """Called by the workers when a job has ended, possibly twice."""
    try:
        message = verified(request.headers, await request.body(), SECRET)
    except BadSignature as error:
        raise HTTPException(401, str(error)) from None
    ended[message["data"]["id"]] = message["type"]
