"""The HTTP server: every simulated provider at its own base path, and a control endpoint beside them.

    POST   /control/NAME      a fault as JSON, at once or after its `after_…`
    DELETE /control/NAME      end all faults of that provider
    GET    /control/stats     the oracle's counts; with ?jobs=1 also by job
    *      /NAME/v1/…         the provider itself

A job is recognised by the header `x-turnout-job`, and without it by the hash of its prompt.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import count
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from turnout_workers.simulator.answers import Call, answer, digest
from turnout_workers.simulator.anthropic import Anthropic
from turnout_workers.simulator.gemini import Gemini
from turnout_workers.simulator.openai import OpenAI
from turnout_workers.simulator.oracle import Books, Job
from turnout_workers.simulator.scenario import Fault, Scenario, fault
from turnout_workers.simulator.wire import Problem, Wire

WIRES: Mapping[str, Wire] = {"openai": OpenAI(), "anthropic": Anthropic(), "gemini": Gemini()}
SIMULATED = {"x-turnout-simulated": "1"}
_MAX_BODY = 32 * 1024 * 1024
_GARBAGE = b"<html><body><h1>It works!</h1></body></html>"
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class Simulator:
    """A running server; `async with Simulator(scenario) as simulator: simulator.base_url(name)`."""

    def __init__(self, scenario: Scenario, host: str = "127.0.0.1", port: int = 0) -> None:
        self.scenario, self.host, self.port = scenario, host, port
        self.jobs: dict[str, Job] = {}
        self._books: dict[str, Books] = {}
        self._ids = count(1)
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Simulator:
        now, seed = time.monotonic(), self.scenario.seed
        self._books = {n: Books(n, p, now, seed) for n, p in self.scenario.providers.items()}
        # Cancellation frees a place in flight when the caller hangs up; what was generated stays billed.
        server = web.Server(self._handle, request_factory=_request, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def base_url(self, provider: str) -> str:
        """What a client of that provider is configured with; those of OpenAI's format want the version."""
        version = "/v1" if self.scenario.providers[provider].kind == "openai" else ""
        return f"{self.url}/{provider}{version}"

    def fail(self, provider: str, fault: Fault) -> None:
        """Announce a fault, as `POST /control/…` does."""
        self._books[provider].announce(fault, time.monotonic())

    def heal(self, provider: str) -> None:
        self._books[provider].clear()

    def stats(self, jobs: bool = False) -> dict[str, Any]:
        """What the providers did, by their own books."""
        now = time.monotonic()
        told: dict[str, Any] = {
            "providers": {name: books.stats(now) for name, books in self._books.items()},
            "billed_microusd": sum(books.billed_microusd for books in self._books.values()),
            "jobs_seen": len(self.jobs),
            "jobs_by_calls": dict(Counter(job.calls for job in self.jobs.values())),
            "jobs_by_answers": dict(Counter(job.answered for job in self.jobs.values())),
            "jobs_by_bills": dict(Counter(job.billed for job in self.jobs.values())),
        }
        if jobs:
            told["jobs"] = {key: asdict(job) for key, job in self.jobs.items()}
        return told

    # --- requests ----------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        head, _, path = request.path.lstrip("/").partition("/")
        if head == "control":
            return await self._control(request, path)
        if (books := self._books.get(head)) is None:
            return _json(404, {"error": f"no provider {head!r}; there are {', '.join(self._books)}"})
        version, _, rest = path.partition("/")
        exchange = _Exchange(self, books, request, f"{next(self._ids):08x}")
        return await exchange.serve(rest if version in ("v1", "v1beta") else path)

    async def _control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method == "GET" and path == "stats":
            return _json(200, self.stats(jobs="jobs" in request.query))
        if path not in self._books:
            return _json(404, {"error": f"no provider {path!r}; there are {', '.join(self._books)}"})
        if request.method == "DELETE":
            self.heal(path)
        else:
            try:
                self.fail(path, fault(json.loads(await request.read())))
            except ValidationError as error:
                return _json(400, {"error": error.errors(include_url=False, include_context=False)})
            except ValueError as error:
                return _json(400, {"error": str(error)})
        return _json(200, self._books[path].stats(time.monotonic()))


class _Exchange:
    """One request to one provider."""

    def __init__(self, simulator: Simulator, books: Books, request: web.BaseRequest, request_id: str) -> None:
        self.simulator, self.books, self.request, self.id = simulator, books, request, request_id
        self.wire = WIRES[books.provider.kind]
        self.key = self.wire.key(request.headers)
        self.now = time.monotonic()
        self.struck = books.struck(self.now, check=request.method == "GET")

    async def serve(self, path: str) -> web.StreamResponse:
        try:
            if "down" in self.struck:
                return self._hang_up("down")
            if "hang" in self.struck:
                self.books.statuses["hang"] += 1
                await asyncio.sleep(86_400)
            if self.books.provider.keys and self.key not in self.books.provider.keys:
                raise Problem("unauthorized", "Incorrect API key provided.")
            if path == "models" and self.request.method == "GET":
                self._refuse_if_told()
                names = {m.served or name: m.context_tokens for name, m in self.books.provider.models.items()}
                return self._reply(200, self.wire.models(names))
            return await self._call(path)
        except Problem as problem:
            status, body = self.wire.error(problem, self.id)
            wait = problem.retry_after_s
            told = {} if wait is None else {"retry-after": str(max(1, math.ceil(wait)))}
            if status == 429 and self.books.provider.kind == "gemini":
                told = {}  # Gemini says it in the body
            return self._reply(status, body, told)

    async def _call(self, path: str) -> web.StreamResponse:
        books, provider = self.books, self.books.provider
        call = await self._read(path)
        job = self.simulator.jobs.setdefault(
            self.request.headers.get("x-turnout-job") or digest("\0".join(call.texts)), Job()
        )
        job.calls += 1
        job.providers.append(books.name)
        model = books.models.get(call.model)
        if model is None:
            raise Problem("not_found", f"The model {call.model!r} does not exist or you do not have access to it.")
        wanted = call.input_tokens
        if wanted > model.context_tokens:
            raise Problem("context_length", f"{wanted} tokens > {model.context_tokens} maximum context length")
        self._refuse_if_told()
        scenario = self.simulator.scenario
        given = answer(call, books.name, scenario.seed, scenario.output_tokens)
        books.admit(self.key, given.input_tokens, given.output_tokens, self.now)
        books.begin(self.key)
        try:
            books.bill(job, model.price, given.input_tokens, given.output_tokens)
            pace = self.struck["slow"].factor if "slow" in self.struck else 1.0
            if provider.jitter:
                pace *= math.exp(books.rng.gauss(0, provider.jitter))
            streamed = call.stream and not self.struck.keys() & {"bill", "garbage"}
            delay = provider.ttft_s + (0 if streamed else given.output_tokens * provider.s_per_token)
            if delay:
                await asyncio.sleep(delay * pace)
            if streamed:
                events = list(self.wire.stream(call, given))
                response = await self._stream(events, provider.s_per_token * pace)
            else:
                response = await self._whole(self.wire.body(call, given))
        finally:
            books.end(self.key)
        if not self.struck.keys() & {"truncate", "garbage"}:
            job.answered += 1
            books.answered += 1
        return response

    async def _read(self, path: str) -> Call:
        try:
            return self.wire.parse(path, json.loads(await self.request.read()))
        except web.HTTPRequestEntityTooLarge:
            raise Problem("too_large", "Request exceeds the maximum size") from None
        except _UNREADABLE as error:
            raise Problem("invalid", f"Could not read the request: {type(error).__name__}") from None

    def _refuse_if_told(self) -> None:
        if fault := self.struck.get("rate_limit"):
            raise Problem("rate_limited", "Rate limit reached (simulated).", None, fault.retry_after_s or 1.0)
        if fault := self.struck.get("error"):
            self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        kind = "overloaded" if fault.status in (503, 529) else "server_error"
        raise Problem(kind, "The server had an error (simulated).", fault.status, fault.retry_after_s)

    async def _whole(self, body: Mapping[str, Any]) -> web.StreamResponse:
        if fault := self.struck.get("bill"):
            self._fail(fault)
        if "garbage" in self.struck:
            self.books.statuses["garbage"] += 1
            return web.Response(body=_GARBAGE, content_type="text/html", headers=self._headers())
        if "truncate" not in self.struck:
            return self._reply(200, body)
        payload = _encode(body)
        response = web.StreamResponse(headers=self._headers() | {"content-type": "application/json"})
        response.content_length = len(payload)
        await response.prepare(self.request)
        await response.write(payload[: len(payload) // 2])
        return self._hang_up("truncate", response)

    async def _stream(self, events: list[tuple[int, bytes]], s_per_token: float) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._headers() | {"content-type": "text/event-stream"})
        await response.prepare(self.request)
        cut = len(events) // 2 if "truncate" in self.struck else None
        for tokens, data in events[:cut]:
            if s_per_token and tokens:
                await asyncio.sleep(tokens * s_per_token)
            await response.write(data)
        if cut is not None:
            return self._hang_up("truncate", response)
        self.books.statuses["200"] += 1
        return response

    def _headers(self) -> dict[str, str]:
        gauges = self.books.gauges(self.key, self.now)
        return self.wire.headers(gauges, time.time(), self.id) | SIMULATED

    def _reply(self, status: int, body: Mapping[str, Any], more: Mapping[str, str] = SIMULATED) -> web.Response:
        self.books.statuses[str(status)] += 1
        return web.Response(
            status=status,
            body=_encode(body),
            content_type="application/json",
            headers={**self._headers(), **more},
        )

    def _hang_up(self, why: str, response: web.StreamResponse | None = None) -> web.StreamResponse:
        """Close the connection: what was written arrives, nothing else does."""
        self.books.statuses[why] += 1
        if self.request.transport is not None:
            self.request.transport.close()
        return response or web.Response()


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY)


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _json(status: int, body: Mapping[str, Any]) -> web.Response:
    return web.Response(status=status, body=_encode(body), content_type="application/json", headers=SIMULATED)
