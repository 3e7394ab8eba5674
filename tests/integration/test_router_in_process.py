"""The router as a library: connectors from a configuration, real HTTP to a simulated fleet, no queue, no Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from turnout.request import InferenceRequest, RoutingStrategy
from turnout_workers.config import Source, accounts, load, toml_lines
from turnout_workers.providers import Http, build
from turnout_workers.routing import IntelligentRouter
from turnout_workers.simulator import Fault, Scenario
from turnout_workers.simulator.server import Simulator

ASK = InferenceRequest(prompt="Say hello.", max_output_tokens=20)


def provider(kind: str, price: float, **more: object) -> dict[str, object]:
    return {"kind": kind, "models": {"llama": {"input_usd_per_mtok": price, "output_usd_per_mtok": price}}, **more}


@contextlib.asynccontextmanager
async def routing(
    first: dict[str, object], second: dict[str, object]
) -> AsyncIterator[tuple[IntelligentRouter, Simulator]]:
    """A router over two simulated providers of different wire formats, the first one preferred."""
    scenario = Scenario.model_validate({"providers": {"groq": first, "gemini": second}, "output_tokens": 5})
    async with Simulator(scenario) as simulator, contextlib.aclosing(Http()) as http:
        urls = {name: simulator.base_url(name) for name in scenario.providers}
        file = toml_lines.dumps(scenario.configuration(urls))
        configured = load(Source("a test", file), {})
        async with IntelligentRouter(RoutingStrategy.PRIORITY, health_check_interval=0.1) as router:
            for priority, account in enumerate(accounts(configured), 1):
                router.register_provider(build(account, http), priority=priority)
            yield router, simulator


async def test_the_chosen_provider_is_called_and_no_other() -> None:
    async with routing(provider("openai", 1.0), provider("gemini", 0.1)) as (router, _):
        cheapest = await router.get_provider_for_request(ASK, strategy=RoutingStrategy.COST_OPTIMIZED)
        response = await cheapest.complete(ASK)
        assert (cheapest.name, response.provider) == ("gemini", "gemini")
        assert response.simulated
        assert (await router.complete(ASK)).provider == "groq"


async def comes_back(router: IntelligentRouter) -> None:
    async with asyncio.timeout(20):
        while (await router.complete(ASK)).provider != "groq":
            await asyncio.sleep(0.05)


async def test_a_key_that_is_refused_takes_its_provider_out_until_a_health_check_accepts_it() -> None:
    async with routing(provider("openai", 1.0), provider("gemini", 0.1)) as (router, simulator):
        simulator.fail("groq", Fault(kind="error", status=401))
        assert (await router.complete(ASK)).provider == "gemini"
        view = (await router.snapshot()).by_id["groq/llama"]
        assert (view.health.disabled or "").startswith("unauthorized")
        simulator.heal("groq")
        await comes_back(router)
