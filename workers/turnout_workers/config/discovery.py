"""A configuration without a file: from keys in the environment, or from inference servers on this machine.

Each function returns the tables of a `turnout.toml` as data, for `toml_lines.dumps`.
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
"""Size of a server's list of models."""
_DIRECT = build_opener(ProxyHandler({}))
_LOCAL = {name: DIALECTS[name].base_url for name in ("ollama", "vllm", "llamacpp")}


def from_environment(environ: Mapping[str, str]) -> Tables:
    """A provider for every `…_API_KEY` or `…_API_KEY_FILE` in the environment.

    A base URL set for a vendor's own client (`OPENAI_BASE_URL`, …) is used, because the key belongs there. Groq's and
    Cerebras's clients append their path to it.
    """
    providers: Tables = {}
    for name, dialect in DIALECTS.items():
        names = (v for v in dialect.key_variables if environ.get(v) or environ.get(f"{v}_FILE"))
        if not dialect.base_url or (variable := next(names, None)) is None:
            continue  # Azure's address differs by customer, so it needs a file
        base_url = environ.get(f"{name.upper()}_BASE_URL", "").rstrip("/")
        if name in ("groq", "cerebras") and base_url.count("/") == 2:
            base_url += urlsplit(dialect.base_url).path
        providers[name] = {"api_key_env": variable, "base_url": base_url or None}
    return {"providers": providers} if providers else {}


def from_local_servers(servers: Mapping[str, str] = _LOCAL, timeout_s: float = 0.5) -> Tables:
    """A provider for every inference server on this machine that lists models at its usual port."""
    providers: Tables = {}
    for name, base_url in servers.items():
        # The context length that vLLM and llama.cpp report is ignored. They cut an answer that doesn't fit; a job whose
        # longest possible answer doesn't fit would be refused.
        free = {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
        # llama.cpp names a model by the path of its file, which may hold spaces. Our names can't.
        ids = [id for id in _models(base_url, timeout_s) if id and id.isprintable()]
        if models := {id.replace(" ", "_")[-200:]: {"name": id, **free} for id in ids}:
            providers[name] = {"base_url": base_url, "models": models}
    return {"providers": providers} if providers else {}


def _models(base_url: str, timeout_s: float) -> list[str]:
    """The ids of a server's models. Empty if there is no server, or another kind of server."""
    try:
        with _DIRECT.open(f"{base_url}/models", timeout=timeout_s) as reply:
            return [str(model["id"]) for model in json.loads(reply.read(MAX_BYTES))["data"]]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
        return []
