"""Configuration where none was written: from the environment's keys, or from inference servers on this machine.

Each gives the tables of a `turnout.toml` as data, to be written by `toml_lines.dumps`. Worker processes are always
started with such a file, so that there is only one way in which a configuration reaches them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import Http, Outgoing, address

Tables = dict[str, Any]

_LOCAL = {name: DIALECTS[name].base_url for name in ("ollama", "vllm", "llamacpp")}


def from_environment(environ: Mapping[str, str]) -> Tables:
    """A provider for every key that the environment has, as `…_API_KEY` or `…_API_KEY_FILE`.

    A base URL set for a vendor's own client (`OPENAI_BASE_URL`, …) is honoured: its key belongs there.
    """
    providers: Tables = {}
    for name, dialect in DIALECTS.items():
        given = (v for v in dialect.key_variables if environ.get(v) or environ.get(f"{v}_FILE"))
        if not dialect.base_url or (variable := next(given, None)) is None:
            continue  # Azure's address is each customer's own: it takes a file
        providers[name] = {"api_key_env": variable, "base_url": environ.get(f"{name.upper()}_BASE_URL") or None}
    return {"providers": providers} if providers else {}


async def from_local_servers(servers: Mapping[str, str] = _LOCAL, timeout_s: float = 0.5) -> Tables:
    """A provider for every inference server on this machine that lists models at its usual port."""
    timeouts = Timeouts(timeout_s, timeout_s, timeout_s, timeout_s)

    async def ask(name: str, base_url: str) -> tuple[str, Tables] | None:
        try:
            reply = await http.json(Outgoing(address(base_url, "/models"), {}, None, timeouts))
            ids = [str(model["id"]) for model in reply.body["data"]]
        except (ProviderError, LookupError, TypeError):
            return None  # no server there, or another one than we mean
        # The context that vLLM and llama.cpp tell is left out: both cut an answer that doesn't fit, while a job whose
        # longest possible answer doesn't is refused.
        free = {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
        # llama.cpp calls a model by the path of its file, which may hold spaces, as no name of ours.
        models = {id.replace(" ", "_")[-200:]: {"name": id, **free} for id in ids if id and id.isprintable()}
        return (name, {"base_url": base_url, "models": models}) if models else None

    async with aclosing(Http()) as http:
        answers = await asyncio.gather(*(ask(name, url) for name, url in servers.items()))
    found = dict(answer for answer in answers if answer)
    return {"providers": found} if found else {}
