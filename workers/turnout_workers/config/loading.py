"""Loads `turnout.toml` and the environment into frozen values, checked once.

`tables.py` describes the file, and `turnout.example.toml` shows all of it. Every error names the file, line and field,
or the environment variable, and what to do. A changed file is loaded again.

Without a file, `discovery.py` makes the same tables from keys in the environment, or from inference servers on this
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.redis_address import with_password
from turnout_workers import providers
from turnout_workers.config import credentials, discovery, toml_lines
from turnout_workers.config.public_addresses import address_problem
from turnout_workers.config.tables import Config, ProviderTable
from turnout_workers.config.toml_lines import ConfigError
from turnout_workers.providers.account import Secret
from turnout_workers.providers.catalogue import served_by
from turnout_workers.providers.dialects import DIALECTS

DEFAULT_FILE = "turnout.toml"
"""In the working folder."""
FROM_ENVIRONMENT = {
    "REDIS_URL": ("redis_url",),
    "TURNOUT_NAMESPACE": ("namespace",),
    "TURNOUT_CONCURRENCY": ("worker", "concurrency"),
    "TURNOUT_METRICS_HOST": ("monitoring", "metrics_host"),
    "TURNOUT_METRICS_PORT": ("monitoring", "metrics_port"),
    "TURNOUT_STRATEGY": ("router", "default_strategy"),
    "TURNOUT_LOG_LEVEL": ("monitoring", "log_level"),
    "TURNOUT_LOG_FORMAT": ("monitoring", "log_format"),
}
"""Environment variables that override the file, and the fields that they set."""
RELOADABLE: dict[str, Any] = {
    **dict.fromkeys(("providers", "lanes", "webhooks", "ceilings", "retention"), True),
    "router": {"default_strategy"},
}
"""What takes effect without a restart of the worker."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from: a file, or what was discovered instead."""

    where: str
    """The file's path, or what `made` was made from; for people."""
    made: str | None = field(default=None, repr=False)
    """The text of a generated turnout.toml. None: there is a file."""

    def text(self) -> str:
        return toml_lines.read_text(Path(self.where)) if self.made is None else self.made


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration. Nothing in it shows a key when printed."""

    config: Config
    keys: Mapping[str, tuple[str, ...]] = field(repr=False)
    """By name of the provider."""
    secrets: Mapping[str, Secret]
    """By name of the webhook."""
    version: str
    """Hash of the reloadable part, so that workers with the same version route alike. Keys aren't part of it, because
    commands may lack them."""
    source: Source

    @property
    def simulated(self) -> list[str]:
        """The providers whose answers are made up."""
        return [name for name, table in self.config.providers.items() if table.simulated]


def source(environ: Mapping[str, str], file: Path | None = None) -> Source | None:
    """The given file, else that in `TURNOUT_CONFIG`, else `turnout.toml` in the working folder, else keys in the
    environment, else servers on this machine. None if there is none of these.
    """
    if named := file or environ.get("TURNOUT_CONFIG") or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None):
        return Source(str(named))
    if found := discovery.from_environment(environ):
        return Source("the environment", toml_lines.dumps(found))
    found = discovery.from_local_servers()
    return Source("servers on this machine", toml_lines.dumps(found)) if found else None


def configured(environ: Mapping[str, str], with_keys: bool = True) -> Settings:
    """The configuration of this process, from where `source` finds it. Without a source, it has no provider."""
    return load(source(environ) or Source("nowhere", ""), environ, with_keys)


def load(source: Source, environ: Mapping[str, str], with_keys: bool = True) -> Settings:
    """Read and check a configuration. Raises ConfigError. Keys come from `environ` and the files that it names.

    with_keys: False for commands that only look on, because an operator's machine may lack the workers' keys.
    """
    text, where, environ = source.text(), source.where, with_password(environ)
    config = toml_lines.read(text, where, Config, environ, FROM_ENVIRONMENT)
    keys: dict[str, tuple[str, ...]] = {}
    secrets: dict[str, Secret] = {}
    problems: list[str] = []

    @contextmanager
    def problems_at(*path: str) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            problems.append(f"{toml_lines.location(text, where, path)}: {error}")

    for name, table in config.providers.items():
        with problems_at("providers", name):
            _check(table)
            keys[name] = credentials.api_keys(table, environ) if with_keys else credentials.placeholder_keys(table)
    for name, webhook in config.webhooks.items() if with_keys else ():
        with problems_at("webhooks", name):
            if trouble := address_problem(webhook.url, webhook.private):
                raise ConfigError(trouble)
            secrets[name] = credentials.signing_secret(webhook, environ)
    for name in config.ceilings.providers:
        with problems_at("ceilings", "providers", name):
            if name not in config.providers:  # a misspelt ceiling would never apply
                there = ", ".join(config.providers) or "none"
                raise ConfigError(f"there is no provider of this name; there are {there}")
    if problems:
        raise ConfigError("\n".join(problems))
    return Settings(config, keys, secrets, _version(config), source)


def _version(config: Config) -> str:
    followed = config.model_dump(include=RELOADABLE, exclude_defaults=True)
    text = json.dumps(followed, sort_keys=True, default=sorted)  # sorts its sets
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check(table: ProviderTable) -> None:
    """Checks that need a provider's whole table. Raises ConfigError."""
    if table.kind not in (kinds := providers.kinds()):
        if table.kind in DIALECTS:
            raise ConfigError(f'{table.kind} is a preset, not a kind: write dialect = "{table.kind}" instead')
        raise ConfigError(f"there is no connector of kind {table.kind}; there are {', '.join(sorted(kinds))}")
    if table.kind in providers.KINDS and not (table.base_url or table.preset.base_url):
        raise ConfigError("base_url is missing, and there is no preset of this name")
    if not table.models and not any(served_by(table.dialect)):
        raise ConfigError("models is missing, and the catalogue doesn't know what this provider serves")
    if table.version and table.kind == "openai":
        raise ConfigError("version is only for Anthropic's and Gemini's API: remove it")
