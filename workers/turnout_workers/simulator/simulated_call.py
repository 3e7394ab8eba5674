"""One request to one simulated provider: its faults, its cost, its answer and how fast it comes."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from turnout.request import Capability
from turnout_workers.simulator.answers import Answer, Call, make_answer
from turnout_workers.simulator.anthropic import Anthropic
from turnout_workers.simulator.gemini import Gemini
from turnout_workers.simulator.openai import OpenAI
from turnout_workers.simulator.oracle import Books, Job, Meter
from turnout_workers.simulator.scenario import FaultKind, Scenario
from turnout_workers.simulator.wire import Problem, Wire, encode

WIRES: Mapping[str, Wire] = {"openai": OpenAI(), "anthropic": Anthropic(), "gemini": Gemini()}
_KINDS = {429: "rate_limited", 503: "overloaded", 529: "overloaded"}
"""Kinds of errors by status."""
_GARBAGE = b"<html><body><h1>It works!</h1></body></html>"
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


class SimulatedCall:
    """One request to one provider."""

    def __init__(self, scenario: Scenario, books: Books, job: Job, request: web.BaseRequest, request_id: str) -> None:
        self.scenario, self.books, self.job, self.request, self.id = scenario, books, job, request, request_id
        job.calls += 1
        self.wire, self.preset = WIRES[books.provider.kind], books.provider.preset
        credentials = request.headers.get(self.preset.auth_header) or request.headers.get("authorization")
        self.key = (credentials or "").removeprefix("Bearer ").strip()
        self.meter: Meter | None = None
        """None until the model is known."""
        self.now = time.monotonic()
        self.struck = books.struck(self.now, check=request.method == "GET")

    async def serve(self, path: str) -> web.StreamResponse:
        try:
            if "down" in self.struck:
                return self._hang_up("down")
            if "hang" in self.struck:
                self.books.counts.replied("hang")
                await asyncio.sleep(86_400)
            if (keys := self.books.provider.api_key) and self.key not in keys:
                raise Problem("unauthorized", "Incorrect API key provided.")
            if path == "models" and self.request.method == "GET":
                self._fail_on("error")
                return self._reply(200, self.wire.models(self.books.models))
            return await self._call(path)
        except Problem as problem:
            status = problem.status or self.wire.statuses[problem.kind]
            return self._reply(status, self.wire.error(problem, status, self.id), problem.retry_after_s)

    async def _call(self, path: str) -> web.StreamResponse:
        books, provider = self.books, self.books.provider
        call, answer = await self._read(path)
        model = books.models.get(call.model)
        if model is None or call.embed != (Capability.EMBEDDINGS in model.capabilities):
            raise Problem("not_found", f"The model {call.model!r} does not exist or you do not have access to it.")
        self.meter = self.key, call.model
        if answer.input_tokens > model.context_tokens:
            limit = f"{model.context_tokens} maximum context length"
            raise Problem("context_length", f"{answer.input_tokens} tokens > {limit}")
        self._fail_on("error")
        with books.admitted(self.meter, answer, self.now):
            books.bill(model, answer)
            self.job.billed += 1
            pace = self.struck["slow"].factor if "slow" in self.struck else 1.0
            if provider.jitter:
                pace *= math.exp(books.rng.gauss(0, provider.jitter))
            streamed = call.stream and not self.struck.keys() & {"bill", "garbage"}
            delay = provider.ttft_s + (0 if streamed else answer.output_tokens * provider.s_per_token)
            if delay:
                await asyncio.sleep(delay * pace)
            if streamed:
                events = list(self.wire.stream(call, answer))
                response = await self._stream(events, provider.s_per_token * pace)
            else:
                response = await self._whole(self.wire.body(call, answer))
        if not self.struck.keys() & {"truncate", "garbage"}:
            self.job.answered += 1
            books.counts.answered += 1
        return response

    async def _read(self, path: str) -> tuple[Call, Answer]:
        try:
            call = self.wire.parse(path, json.loads(await self.request.content.read()))
            return call, make_answer(call, self.books.name, self.scenario.seed, self.scenario.output_tokens)
        except _UNREADABLE as error:
            raise Problem("invalid", f"Could not read the request: {type(error).__name__}") from None

    def _fail_on(self, kind: FaultKind) -> None:
        if fault := self.struck.get(kind):
            problem = _KINDS.get(fault.status, "server_error")
            raise Problem(problem, "The server had an error (simulated).", fault.status, fault.retry_after_s)

    async def _whole(self, body: Mapping[str, Any]) -> web.StreamResponse:
        self._fail_on("bill")
        if "garbage" in self.struck:
            self.books.counts.replied("garbage")
            return web.Response(body=_GARBAGE, content_type="text/html", headers=self._headers())
        if "truncate" not in self.struck:
            return self._reply(200, body)
        payload = encode(body)
        half = len(payload) // 2
        return await self._stream([(0, payload[:half]), (0, payload[half:])], 0, "application/json")

    async def _stream(
        self, events: list[tuple[int, bytes]], s_per_token: float, media: str = "text/event-stream"
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._headers() | {"content-type": media})
        await response.prepare(self.request)
        cut = len(events) // 2 if "truncate" in self.struck else None
        for tokens, data in events[:cut]:
            if s_per_token and tokens:
                await asyncio.sleep(tokens * s_per_token)
            await response.write(data)
        if cut is not None:
            return self._hang_up("truncate", response)
        self.books.counts.replied("200")
        return response

    def _headers(self) -> dict[str, str]:
        """Headers with the limits, in the provider's dialect."""
        headers = {"x-turnout-simulated": "1"}
        if name := self.wire.request_id_header:
            headers[name] = f"req_{self.id}"
        limits = {} if self.meter is None else self.books.limits(self.meter, self.now)
        for name, kind in self.preset.limit_headers.items():
            if bucket := limits.get(kind):
                reset = f"{bucket.wait_s(bucket.limit):.3f}s"
                values = {"limit": bucket.limit, "remaining": int(bucket.level), "reset": reset}
                headers |= {name.format(word): str(value) for word, value in values.items()}
        return headers

    def _reply(self, status: int, body: Mapping[str, Any], retry_after_s: float | None = None) -> web.Response:
        self.books.counts.replied(str(status))
        headers = self._headers()
        if retry_after_s is not None and self.wire.sends_retry_after:
            headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        return web.Response(status=status, body=encode(body), content_type="application/json", headers=headers)

    def _hang_up(self, why: str, response: web.StreamResponse | None = None) -> web.StreamResponse:
        """Close the connection: only what was written before arrives."""
        self.books.counts.replied(why)
        if self.request.transport is not None:
            self.request.transport.close()
        return response or web.Response()
