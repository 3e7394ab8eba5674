"""The peers, in a separate virtual environment: stock Celery with each of its pools, and LiteLLM's router.

Each does what its users would write: a Celery task that calls the provider with httpx and returns the answer,
with the defaults of Celery and of httpx; a loop of `litellm.Router.acompletion`; and, with nothing around the calls, a
loop of httpx with the aiohttp transport.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENVIRONMENT = Path(".turnout") / "peers"
PACKAGES = (
    "celery[redis]==5.7.0",
    "gevent==26.9.0",
    "httpx==0.28.1",
    "httpx-aiohttp==0.2.0",
    "uvloop==0.23.0",
    "litellm==1.106.2",
)

CELERY_APP = """
import os
import httpx
from celery import Celery

app = Celery("peer", broker=os.environ["BROKER"], backend=os.environ["RESULTS"])
client = httpx.Client(timeout=60)

@app.task(name="peer.infer")
def infer(prompt):
    body = {"model": "llama-3.3-70b", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}]}
    reply = client.post(os.environ["URL"] + "/chat/completions", json=body,
                        headers={"authorization": "Bearer simulated"})
    reply.raise_for_status()
    return reply.json()["choices"][0]["message"]["content"]
"""
"""For `celery worker`, and for senders: `python celery_peer.py JOBS` queues that many."""

CELERY_SENDER = """
import sys
import time
from celery_peer import infer

began = time.perf_counter()
for number in range(int(sys.argv[1])):
    infer.delay(f"Question {number}?")
print(int(sys.argv[1]) / (time.perf_counter() - began))
"""

LITELLM_LOOP = """
import asyncio, json, logging, sys, time
began = time.perf_counter()
import litellm
from litellm import Router
imported_s = time.perf_counter() - began
logging.disable(logging.CRITICAL)
litellm.suppress_debug_info = True
url, jobs, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
router = Router(model_list=[{"model_name": "llama", "litellm_params":
    {"model": "openai/llama-3.3-70b", "api_key": "simulated", "api_base": url}}])

async def main():
    free = asyncio.Semaphore(slots)
    async def one(number):
        async with free:
            reply = await router.acompletion("llama", messages=[{"role": "user", "content": f"Question {number}?"}],
                                             max_tokens=8)
            assert reply.choices[0].message.content
    await asyncio.gather(*(one(number) for number in range(min(50, jobs))))
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(jobs)))
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"rate": jobs / took, "cpu_ms": 1000 * cpu / jobs, "imported_s": imported_s}))

asyncio.run(main())
"""

HTTPX_LOOP = """
import asyncio, json, sys, time
import aiohttp, httpx, uvloop
from httpx_aiohttp import AiohttpTransport
url, jobs, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def main():
    free = asyncio.Semaphore(slots)
    session = lambda: aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with httpx.AsyncClient(transport=AiohttpTransport(client=session), timeout=60) as client:
        async def one(number):
            async with free:
                body = {"model": "llama-3.3-70b", "max_tokens": 8,
                        "messages": [{"role": "user", "content": f"Question {number}?"}]}
                reply = await client.post(url + "/chat/completions", json=body,
                                          headers={"authorization": "Bearer simulated"})
                reply.raise_for_status()
                assert reply.json()["choices"][0]["message"]["content"]
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one(number) for number in range(jobs)))
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"rate": jobs / took, "cpu_ms": 1000 * cpu / jobs}))

uvloop.run(main())
"""


def python() -> str:
    """The interpreter of the peers' environment, which is made at first use."""
    ready = ENVIRONMENT / ".installed"
    interpreter = ENVIRONMENT / "bin" / "python"
    wanted = "\n".join(PACKAGES)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"installing {', '.join(PACKAGES)} into {ENVIRONMENT} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True)
        ready.write_text(wanted)
    return str(interpreter.absolute())
