"""Configuration where none was written: from the environment's keys, or from inference servers on this machine.

Each gives the tables of a `turnout.toml` as data, to be written by `toml_lines.dumps`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from turnout_workers.providers.dialects import DIALECTS

Tables = dict[str, Any]

MAX_BYTES = 8_000_000
"""Of a server's list of models."""
_DIRECT = build_opener(ProxyHandler({}))
_LOCAL = {name: DIALECTS[name].base_url for name in ("ollama", "vllm", "llamacpp")}


def from_environment(environ: Mapping[str, str]) -> Tables:
    """A provider for every key that the environment has, as `…_API_KEY` or `…_API_KEY_FILE`.

    A base URL set for a vendor's own client (`OPENAI_BASE_URL`, …) is honoured: its key belongs there. Groq's
    and Cerebras's clients add their path to it.
    """
    providers: Tables = {}
    for name, dialect in DIALECTS.items():
        given = (v for v in dialect.key_variables if environ.get(v) or environ.get(f"{v}_FILE"))
        if not dialect.base_url or (variable := next(given, None)) is None:
            continue  # Azure's address is each customer's own: it takes a file
        base_url = environ.get(f"{name.upper()}_BASE_URL", "").rstrip("/")
        if name in ("groq", "cerebras") and base_url.count("/") == 2:
            base_url += urlsplit(dialect.base_url).path
        providers[name] = {"api_key_env": variable, "base_url": base_url or None}
    return {"providers": providers} if providers else {}


def from_local_servers(servers: Mapping[str, str] = _LOCAL, timeout_s: float = 0.5) -> Tables:
    """A provider for every inference server on this machine that lists models at its usual port."""
    providers: Tables = {}
    for name, base_url in servers.items():
        # The context that vLLM and llama.cpp tell is left out: both cut an answer that doesn't fit, while a job whose
        # longest possible answer doesn't is refused.
        free = {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
        # llama.cpp calls a model by the path of its file, which may hold spaces, as no name of ours.
        ids = [id for id in _models(base_url, timeout_s) if id and id.isprintable()]
        if models := {id.replace(" ", "_")[-200:]: {"name": id, **free} for id in ids}:
            providers[name] = {"base_url": base_url, "models": models}
    return {"providers": providers} if providers else {}


def _models(base_url: str, timeout_s: float) -> list[str]:
    """None where there is no server, or another one than we mean."""
    try:
        with _DIRECT.open(f"{base_url}/models", timeout=timeout_s) as reply:
            return [str(model["id"]) for model in json.loads(reply.read(MAX_BYTES))["data"]]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
        return []
