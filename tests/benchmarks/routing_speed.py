"""How long a routing decision takes, and litellm.Router's for the same work in the same run.

    python -m tests.benchmarks.routing_speed [--no-peer] [--litellm 1.106.2]

Ours: `rank` with every constraint set, from a snapshot of 20 and of 200 endpoints that serve the model; then
with all that a job needs before and after (profile, the best candidate), and with a snapshot of its own.
LiteLLM: `Router.get_available_deployment` over 20 deployments, as it comes, with its lowest-latency strategy
(the nearest to ours), and with its pre-call checks; installed into a virtual environment that is thrown away.
The two take turns, so that both see the same machine. Goals: median of 20 at most 20 µs; 200 at most ten times.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.measure import add_keep_option, keep

ROUNDS, CALLS = 15, 200

PEER = """
import json, logging, statistics, sys, time
logging.disable(logging.CRITICAL)
import litellm
from litellm import Router
litellm.suppress_debug_info = True

def router(**options):
    deployments = [
        {"model_name": "llama", "litellm_params": {"model": "openai/gpt-4o-mini", "api_key": "none", "rpm": 1000,
         "tpm": 300000, "api_base": f"http://127.0.0.1:{9000 + i}"}, "model_info": {"id": str(i)}}
        for i in range(20)
    ]
    return Router(model_list=deployments, **options)

routers = {
    "as it comes": router(),
    "lowest latency": router(routing_strategy="latency-based-routing"),
    "pre-call checks": router(enable_pre_call_checks=True),
}
messages = [{"role": "user", "content": "hello " * 200}]
print(json.dumps(litellm.__dict__.get("__version__", "?")), flush=True)
for name, one in routers.items():
    for _ in range(20):
        one.get_available_deployment("llama", messages=messages, request_kwargs={})
for line in sys.stdin:
    times = {}
    for name, one in routers.items():
        took = []
        for _ in range(40):
            began = time.perf_counter()
            one.get_available_deployment("llama", messages=messages, request_kwargs={})
            took.append(time.perf_counter() - began)
        times[name] = statistics.median(took) * 1e6
    print(json.dumps(times), flush=True)
"""


def ours() -> dict[str, Callable[[], object]]:
    from turnout.request import Capability, InferenceRequest, Lane, Quality, RoutingConstraints
    from turnout_workers.routing import Endpoint
    from turnout_workers.routing.decision import rank
    from turnout_workers.routing.decision_log import to_json_dict
    from turnout_workers.routing.fleet import EndpointView, Fleet, Limits, Load, Price, ProviderMetrics, Snapshot
    from turnout_workers.routing.profile import JobProfile

    rng = random.Random(1)

    def views(count: int) -> tuple[EndpointView, ...]:
        return tuple(
            EndpointView(
                Endpoint(
                    f"p{i}",
                    "llama",
                    "llama-3.3",
                    price=Price(rng.uniform(0.1, 3), rng.uniform(0.3, 9)),
                    limits=Limits(1000, 300_000, concurrency=50),
                    capabilities=frozenset({Capability.TOOLS, Capability.JSON_SCHEMA}),
                    context_tokens=128_000,
                    max_output_tokens=8192,
                    quality=Quality.GOOD,
                    regions=frozenset({"eu"}),
                    no_training=True,
                    zero_retention=True,
                ),
                metrics=ProviderMetrics(rng.uniform(0.2, 1), rng.uniform(0.005, 0.02), 0.4, 999.0, 50, 0.02, 20.0),
                load=Load(in_flight=rng.randrange(20)),
            )
            for i in range(count)
        )

    request = InferenceRequest(
        prompt="hello " * 200,
        model="llama",
        max_output_tokens=500,
        constraints=RoutingConstraints(
            ignore=("elsewhere",),
            regions=("eu", "ch"),
            no_training=True,
            zero_retention=True,
            capabilities=frozenset({Capability.TOOLS}),
            min_quality=Quality.BASIC,
            max_input_usd_per_mtok=50,
            max_cost_usd=0.5,
            max_latency_s=60,
            deadline_s=30,
            lane=Lane.INTERACTIVE,
        ),
    )
    deadline = request.constraints.deadline_at(999.0)
    job = JobProfile.of(request, deadline=deadline)
    small, large = views(20), views(200)
    fleets = {20: Fleet(v.endpoint for v in small), 200: Fleet(v.endpoint for v in large)}

    def snapshot(views: tuple[EndpointView, ...]) -> Snapshot:
        fleet = fleets[len(views)]
        return Snapshot(999.9, views, dict(zip(fleet.ids, views, strict=True)), fleet)

    snapshots = {20: snapshot(small), 200: snapshot(large)}
    return {
        "20 endpoints": lambda: rank(job, snapshots[20], 1000.0, rng),
        "200 endpoints": lambda: rank(job, snapshots[200], 1000.0, rng),
        "20, with profile and choice": lambda: (
            rank(JobProfile.of(request, deadline=deadline), snapshots[20], 1000.0, rng).best
        ),
        "20, from a snapshot of its own": lambda: rank(job, snapshot(small), 1000.0, rng),
        "20, with its record": lambda: to_json_dict(rank(job, snapshots[20], 1000.0, rng)),
    }


def median_us(work: Callable[[], object]) -> float:
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def peer(folder: Path, version: str) -> subprocess.Popen[str]:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"litellm=={version}"]
    subprocess.run(command, check=True)
    process = subprocess.Popen(
        [str(python), "-c", PEER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--litellm", default="1.106.2", metavar="VERSION")
    add_keep_option(parser)
    chosen = parser.parse_args()
    found: dict[str, list[float]] = {}
    work = ours()
    with tempfile.TemporaryDirectory() as folder:
        other = None if chosen.no_peer else peer(Path(folder), chosen.litellm)
        for _ in range(ROUNDS):
            for name, one in work.items():
                found.setdefault(name, []).append(median_us(one))
            if other is not None:
                assert other.stdin is not None
                assert other.stdout is not None
                other.stdin.write("\n")
                other.stdin.flush()
                for name, took in json.loads(other.stdout.readline()).items():
                    found.setdefault(f"litellm {chosen.litellm}, {name}", []).append(took)
        if other is not None:
            other.terminate()
            other.wait()
    base = statistics.median(found["20 endpoints"])
    print(f"median of {ROUNDS} rounds, with the least and the most; times the first line")
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:40} {middle:9.1f} µs  ({min(times):.1f} … {max(times):.1f})  {middle / base:7.1f} ×")
    if chosen.keep:
        keep("routing_speed", {"unit": "µs a decision", "raw": found})


if __name__ == "__main__":
    main()
