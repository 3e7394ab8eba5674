"""What the operator's commands start from: the configuration, Redis, the ledger, the fleet."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import redis

from turnout.ledger import Call, Keyring, Keys, Ledger, run
from turnout.redis_address import connect
from turnout_workers import config, discovery
from turnout_workers.config import ConfigError, Settings, configured, find
from turnout_workers.endpoints import fleet
from turnout_workers.routing.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a command works."""

    settings: Settings
    client: redis.Redis
    ledger: Ledger
    fleet: Fleet

    def ask(self, *calls: Call[Any]) -> list[Any]:
        """Send calls in one round trip."""
        return run(self.client, calls)

    def endpoints(self, name: str) -> list[str]:
        """Ids of an endpoint, or of all endpoints of a provider."""
        found = [e.id for e in self.fleet.endpoints if name in (e.id, e.provider, e.account_id)]
        if not found:
            known = ", ".join(dict.fromkeys(e.provider for e in self.fleet.endpoints))
            raise click.ClickException(f"no provider or endpoint is called {name}; there are {known}")
        return found


def setting(with_keys: bool = False, discover: bool = False) -> Setting:
    """Of this environment. Raises TurnoutError if the configuration can't be used.

    with_keys: for commands that call providers; the others do without. discover: where nothing is configured, look
    for inference servers on this machine, as `turnout run` does.
    """
    settings = _settings(with_keys, discover)
    ledger = Ledger(Keys(settings.file.namespace), keyring=Keyring.of(os.environ))
    return Setting(settings, connect(settings.file.redis_url), ledger, fleet(settings))


def _settings(with_keys: bool, discover: bool) -> Settings:
    try:
        return configured(os.environ, with_keys=with_keys)
    except ConfigError:
        found = asyncio.run(discovery.from_local_servers()) if discover and not find(os.environ, Path.cwd()) else {}
        if not found:
            raise
        return config.settings(discovery.toml(found), "servers on this machine", os.environ)
