"""A simulated fleet in another process: faults that tests cause at providers, and the oracle of what these have
seen."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.forked import Forked

from turnout_workers.config import discovery, toml_lines
from turnout_workers.local import process
from turnout_workers.simulator import load

NOBODY = '[providers.x]\nbase_url = "http://127.0.0.1:9"\nmodels = ["m"]\n'
"""A configuration with one provider, which doesn't exist."""


def one_provider(name: str = "sim", model: str = "llama-3.3-70b", **fields: Any) -> str:
    """A scenario with one provider and short answers."""
    models = {model: {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}}
    return toml_lines.dumps({"output_tokens": 8, "providers": {name: {"models": models, **fields}}})


def two_providers(ttft_s: float) -> str:
    """A scenario with a cheaper and a dearer provider of one model, and short answers."""
    return "output_tokens = 8\n" + "".join(
        f"[providers.sim-{name}]\nttft_s = {ttft_s}\n"
        f'models."llama-3.3-70b" = {{ input_usd_per_mtok = {usd}, output_usd_per_mtok = {usd + 0.2} }}\n'
        for name, usd in (("one", 0.1), ("two", 0.2))
    )


class Fleet:
    """`config` is a turnout.toml with its providers, plus `tables`."""

    def __init__(self, folder: Path, fleet: str, tables: discovery.Tables | None = None) -> None:
        file, log = folder / "fleet.toml", folder / "simulator.log"
        file.write_text(fleet)
        self._simulator = Forked(["simulate", "--port", "0", "--json", "--scenario", str(file)], {}, log)
        process.wait_until(lambda: "\n" in self._simulator.said, self._simulator, log, 60)
        urls = json.loads(self._simulator.said.splitlines()[0])
        self.url: str = urls["url"]
        self._providers: dict[str, str] = urls["providers"]
        self.config = folder / "turnout.toml"
        self.config.write_text(toml_lines.dumps({**load(file).configuration(self._providers), **(tables or {})}))

    def close(self) -> None:
        process.stop(self._simulator)

    def provider_url(self, provider: str) -> str:
        """The address of one simulated provider."""
        return self._providers[provider]

    def oracle(self) -> dict[str, Any]:
        """What the providers have seen, by provider and by job."""
        with urllib.request.urlopen(f"{self.url}/control/stats?jobs=1") as reply:
            stats: dict[str, Any] = json.load(reply)
            return stats

    def fail(self, provider: str, **fault: Any) -> dict[str, Any]:
        """Begin a fault. Returns what the provider has seen so far."""
        body = json.dumps(fault).encode()
        posted = urllib.request.Request(f"{self.url}/control/{provider}", body, method="POST")
        with urllib.request.urlopen(posted) as reply:
            stats: dict[str, Any] = json.load(reply)
            return stats

    def hurry(self) -> None:
        """Answer calls that begin from now on at once."""
        for provider in self._providers:
            self.fail(provider, kind="slow", factor=0.0)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """No provider answers in this block; they answer after it."""
        self._simulator.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._simulator.send_signal(signal.SIGCONT)

    def heal(self, provider: str) -> None:
        """End all of its faults."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/control/{provider}", method="DELETE")).close()
