"""The HTTP server: every simulated provider at its own base path, and a control endpoint.

    *      /NAME/v1/…         the provider itself
    POST   /control/NAME      a fault as JSON; it begins at once or after its `after_…`
    DELETE /control/NAME      end all faults of that provider
    GET    /control/stats     the oracle's counts; with ?jobs=1 also by job

A job is identified by the header `x-turnout-job`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import count
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from yarl import URL

from turnout_workers.providers.connector import JOB_HEADER
from turnout_workers.simulator.oracle import Books, Job
from turnout_workers.simulator.scenario import Fault, Scenario
from turnout_workers.simulator.simulated_call import SimulatedCall


class Simulator:
    """A running server; `async with Simulator(scenario) as simulator: simulator.base_url(name)`."""

    def __init__(self, scenario: Scenario, host: str = "127.0.0.1", port: int = 0) -> None:
        self.scenario, self.host, self.port = scenario, host, port
        self.jobs: defaultdict[str, Job] = defaultdict(Job)
        """By marker."""
        self._ids = count(1)

    async def __aenter__(self) -> Simulator:
        now, seed = time.monotonic(), self.scenario.seed
        self._books = {name: Books(name, p, now, seed) for name, p in self.scenario.providers.items()}
        # Cancellation frees a slot when the caller hangs up; what was generated stays billed.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = site.port
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return str(URL.build(scheme="http", host=self.host, port=self.port))

    def base_url(self, provider: str) -> str:
        """The base URL for clients of that provider. In OpenAI's format it includes the version."""
        version = "/v1" if self.scenario.providers[provider].kind == "openai" else ""
        return f"{self.url}/{provider}{version}"

    def fail(self, provider: str, fault: Fault) -> None:
        """Announce a fault, as `POST /control/…` does."""
        self._books[provider].announce(fault, time.monotonic())

    def heal(self, provider: str) -> None:
        """End all of its faults."""
        self._books[provider].clear()

    def stats(self, jobs: bool = False) -> dict[str, Any]:
        """What the providers did, according to their own books."""
        now = time.monotonic()
        return {
            "providers": {name: books.stats(now) for name, books in self._books.items()},
            "billed_microusd": sum(books.counts.billed_microusd for books in self._books.values()),
            "jobs_by_calls": Counter(job.calls for job in self.jobs.values()),
            **({"jobs": {marker: asdict(job) for marker, job in self.jobs.items()}} if jobs else {}),
        }

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        head, _, path = request.path.lstrip("/").partition("/")
        if head == "control":
            return await self._control(request, path)
        if (books := self._books.get(head)) is None:
            return self._unknown(head)
        version, _, rest = path.partition("/")
        marker = request.headers.get(JOB_HEADER)
        job = self.jobs[marker] if marker else Job()
        call = SimulatedCall(self.scenario, books, job, request, f"{next(self._ids):08x}")
        return await call.serve(rest if version in ("v1", "v1beta") else path)

    async def _control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method == "GET" and path == "stats":
            return web.json_response(self.stats(jobs="jobs" in request.query))
        if path not in self._books:
            return self._unknown(path)
        if request.method == "DELETE":
            self.heal(path)
        else:
            try:
                self.fail(path, Fault.model_validate_json(await request.read()))
            except ValidationError as error:
                return web.json_response({"error": error.errors(include_url=False, include_context=False)}, status=400)
        return web.json_response(self._books[path].stats(time.monotonic()))

    def _unknown(self, name: str) -> web.Response:
        return web.json_response({"error": f"no provider {name!r}; there are {', '.join(self._books)}"}, status=404)
