"""One of three equal providers dies at job 500 of 1,000, at 100 jobs a second: what it costs us, and what LiteLLM.

For each way to die: calls to the dead provider, failed jobs, and the 99th percentile of the time from submission to
result, before and after the death. LiteLLM's Router runs in a bare loop with its defaults, except for a timeout of 10 s
instead of 600 s. Ours is one worker, including the whole queue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import peers
from tests.benchmarks.measure import add_keep_option, keep
from tests.chaos.stand import Stand, standing

JOBS, RATE, DEATH = 1000, 100.0, 500
FLEET = "output_tokens = 8\n" + "".join(
    f"""
[providers.{name}]
ttft_s = 0.2
jitter = 0.2
models."llama-3.3-70b" = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }}
"""
    for name in ("a", "b", "c")
)
DEATHS: dict[str, dict[str, Any]] = {
    "connection closed": {"kind": "down"},
    "500": {"kind": "error", "status": 500},
    "429": {"kind": "error", "status": 429, "retry_after_s": 5},
    "hang": {"kind": "hang"},
}

LITELLM = """
import asyncio, json, logging, sys, time, urllib.request
import litellm
from litellm import Router
logging.disable(logging.CRITICAL)
litellm.suppress_debug_info = True
urls, control, fault, jobs, rate, death = json.loads(sys.argv[1])
router = Router(timeout=10, model_list=[{"model_name": "llama", "litellm_params":
    {"model": "openai/llama-3.3-70b", "api_key": "simulated", "api_base": url}} for url in urls])

async def main():
    took, failed = {}, 0
    async def one(number):
        nonlocal failed
        began = time.perf_counter()
        try:
            await router.acompletion("llama", messages=[{"role": "user", "content": f"Question {number}?"}],
                                     max_tokens=8)
        except Exception:
            failed += 1
        took[number] = time.perf_counter() - began
    await asyncio.gather(*(one(number) for number in range(-20, 0)))
    took.clear()
    print("warm", flush=True)
    sys.stdin.readline()
    tasks, began = [], time.perf_counter()
    for number in range(jobs):
        await asyncio.sleep(max(0, began + number / rate - time.perf_counter()))
        if number == death:
            body = json.dumps(fault).encode()
            posted = urllib.request.Request(control, body, method="POST")
            died = json.load(await asyncio.to_thread(urllib.request.urlopen, posted))["requests"]
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    print(json.dumps({"died": died, "failed": failed, "took": [took[number] for number in range(jobs)]}))

asyncio.run(main())
"""


def ours(stand: Stand, fault: dict[str, Any]) -> dict[str, Any]:
    stand.start_worker()
    stand.submit([f"warm-{number}" for number in range(20)])
    stand.until(lambda: stand.settled() == 20, 30)
    ids = [str(number) for number in range(JOBS)]
    began, died = time.monotonic(), 0
    for number, job_id in enumerate(ids):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        if number == DEATH:
            died = stand.fail("a", **fault)["requests"]
        stand.submit([job_id])
    stand.until(lambda: stand.settled() == JOBS + 20, 120)
    results = [result for result in stand.results(ids) if result is not None]
    took = [(result.settled_at or 0.0) - (result.accepted_at or 0.0) for result in results]
    return _summary(stand, died, JOBS - sum(result.succeeded for result in results), took)


def litellm(stand: Stand, fault: dict[str, Any]) -> dict[str, Any]:
    urls = [stand.provider_url(name) for name in ("a", "b", "c")]
    asked = json.dumps([urls, f"{stand.url}/control/a", fault, JOBS, RATE, DEATH])
    command = [peers.python(), "-c", LITELLM, asked]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    reply, _ = child.communicate(b"\n")  # read once it has warmed up
    found = json.loads(reply.splitlines()[-1])
    return _summary(stand, found["died"], found["failed"], found["took"])


def _summary(stand: Stand, died: int, failed: int, took: list[float]) -> dict[str, Any]:
    def p99(part: list[float]) -> float:
        return round(statistics.quantiles(part, n=100)[98], 3)

    dead = stand.oracle()["providers"]["a"]["requests"] - died
    return {"dead calls": dead, "failed": failed, "p99 before": p99(took[:DEATH]), "p99 after": p99(took[DEATH:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    add_keep_option(parser)
    parser.add_argument("--only", choices=DEATHS, action="append", help="this way to die")
    options = parser.parse_args()
    runners = {"turnout": ours} if options.no_peers else {"turnout": ours, "litellm": litellm}
    raw: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for death in options.only or DEATHS:
        found = raw.setdefault(death, {name: [] for name in runners})
        for _ in range(options.rounds):
            for name, run in runners.items():
                with tempfile.TemporaryDirectory() as folder, standing(Path(folder), FLEET, 500) as stand:
                    found[name].append(run(stand, DEATHS[death]))
        for name, rounds in found.items():
            facts = ", ".join(f"{fact} {' '.join(str(one[fact]) for one in rounds)}" for fact in rounds[0])
            print(f"{death:18} {name:8} {facts}", flush=True)
    if options.keep:
        keep("outage", {"unit": "calls, jobs, s", "raw": raw})


if __name__ == "__main__":
    main()
