"""Turnout in a FastAPI app: submit, poll, stream, be told.    fastapi dev examples/web/fastapi_app.py"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from turnout import AsyncClient, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import NotSigned, verified

told: dict[str, str] = {}  # in place of your database


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncClient() as app.state.turnout:  # at REDIS_URL; one client serves the whole process
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str


@app.post("/questions", status_code=202)
async def ask(question: Question, request: Request, idempotency_key: str | None = Header(None)) -> dict[str, str]:
    options = {"stream": True, "webhook": os.environ.get("ANSWERS_WEBHOOK"), "idempotency_key": idempotency_key}
    try:
        job = await request.app.state.turnout.submit(question.text, **options)
    except Conflict as error:
        raise HTTPException(409, str(error)) from error
    except IntakeRefused as error:
        raise HTTPException(503, str(error)) from error
    return {"id": job.id}


@app.get("/questions/{job_id}")
async def answer(job_id: str, request: Request) -> dict[str, str | None]:
    job = request.app.state.turnout.job(job_id)
    try:
        status, result = await job.status(), await job.result()
    except LookupError as error:
        raise HTTPException(404, str(error)) from error
    return {"status": status, "text": result.response.text if result and result.response else None}


@app.get("/questions/{job_id}/stream")
async def stream(job_id: str, request: Request) -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        try:
            async for piece in request.app.state.turnout.job(job_id).stream():
                yield event("restart" if isinstance(piece, Restarted) else "piece", piece)
            yield event("end", "")
        except (TurnoutError, LookupError) as error:
            yield event("failed", type(error).__name__)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/answers", status_code=204)
async def answered(request: Request) -> None:
    try:
        result = verified(await request.body(), request.headers, os.environ["ANSWERS_SECRET"])
    except NotSigned as error:
        raise HTTPException(401, str(error)) from error
    told[result.id] = result.status


def event(name: str, piece: str) -> str:
    return f"event: {name}\ndata: {json.dumps(piece)}\n\n"
