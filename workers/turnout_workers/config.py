"""Configuration: `turnout.toml` and the environment become frozen values, checked once.

The file is described by `tables.py` and shown whole in `turnout.example.toml`. Every error names file,
line and field, or the environment variable, and what to do. `load` is a pure function of the file's content
and the environment given to it, so a reload is another `load` whose result replaces the old one or doesn't.

Where there is no file, `discovery.py` makes the same tables from the keys that the environment has.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from turnout.redis_address import with_password
from turnout.request import Value
from turnout_workers import discovery, tables, toml_lines
from turnout_workers.providers.catalogue import served_by
from turnout_workers.providers.dialects import DIALECTS, dialect
from turnout_workers.providers.settings import Secret
from turnout_workers.tables import File, ProviderTable, WebhookTable
from turnout_workers.toml_lines import ConfigError as ConfigError
from turnout_workers.webhooks import Webhook, address_trouble

FROM_ENVIRONMENT = {
    "REDIS_URL": ("redis_url",),
    "TURNOUT_NAMESPACE": ("namespace",),
    "TURNOUT_CONCURRENCY": ("worker", "concurrency"),
    "TURNOUT_METRICS_PORT": ("monitoring", "metrics_port"),
    "TURNOUT_STRATEGY": ("router", "default_strategy"),
    "TURNOUT_LOG_LEVEL": ("monitoring", "log_level"),
    "TURNOUT_LOG_FORMAT": ("monitoring", "log_format"),
}
"""Environment variables that override the file, and the fields that they set."""
WIRE_FORMATS = {preset.kind for preset in DIALECTS.values()}
_TABLES = (table for table in vars(tables).values() if isinstance(table, type) and issubclass(table, Value))
_FIELDS = sorted({name for table in _TABLES for name in table.model_fields})


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration. Nothing in it shows a key when printed."""

    file: File
    """All but the providers: router, worker, lanes, ceilings, retention, monitoring."""
    keys: Mapping[str, tuple[str, ...]] = field(repr=False)
    webhooks: Mapping[str, Webhook]
    version: str
    """Hash of the file, the same for all who have it. Keys, which not everybody has, are no part of it."""
    source: str
    """Where it came from, for people."""

    @property
    def redis_url(self) -> str:
        return self.file.redis_url

    @property
    def simulated(self) -> bool:
        """Whether answers are made up, at least some of them."""
        return any(table.simulated for table in self.file.providers.values())


def find(environ: Mapping[str, str], folder: Path) -> Path | None:
    """The file to load: `TURNOUT_CONFIG`, else `turnout.toml` in `folder`, if there is one."""
    if told := environ.get("TURNOUT_CONFIG"):
        return Path(told)
    path = folder / "turnout.toml"
    return path if path.exists() else None


def configured(environ: Mapping[str, str], folder: Path | None = None, with_keys: bool = True) -> Settings:
    """The configuration of this process: the file that `find` finds, else the environment's keys.

    with_keys: False for who only looks on, so that an operator's machine need not have the workers' keys.
    """
    if (path := find(environ, folder or Path.cwd())) is not None:
        return load(path, environ, with_keys)
    if found := discovery.from_environment(environ):
        return settings(discovery.toml(found), "the environment", environ, with_keys)
    raise ConfigError(
        "no provider is configured: set an API key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, "
        "GEMINI_API_KEY, …), or write a turnout.toml (see turnout.example.toml) and name it in TURNOUT_CONFIG"
    )


def load(path: Path, environ: Mapping[str, str], with_keys: bool = True) -> Settings:
    """Read and check a file. Raises ConfigError. Keys come from `environ` and the files that it names."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    return settings(text, str(path), environ, with_keys)


def settings(text: str, where: str, environ: Mapping[str, str], with_keys: bool = True) -> Settings:
    """The same for a text."""
    environ = with_password(environ)
    # pydantic's lax mode, as environment variables are text.
    file = toml_lines.read(text, where, File.model_validate, _FIELDS, environ, FROM_ENVIRONMENT)
    problems: list[str] = []

    @contextlib.contextmanager
    def table_of(*path: str) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            problems.append(f"{toml_lines.at(where, path, toml_lines.scan(text))}: {'.'.join(path)}: {error}")

    keys: dict[str, tuple[str, ...]] = {}
    for name, table in file.providers.items():
        with table_of("providers", name):
            _check(name, table)
            keys[name] = _keys(name, table, environ) if with_keys else _places(table)
    webhooks: dict[str, Webhook] = {}
    for name, hook in file.webhooks.items() if with_keys else ():
        with table_of("webhooks", name):
            webhooks[name] = _webhook(hook, environ)
    if problems:
        raise ConfigError("\n".join(problems))
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Settings(file, keys, webhooks, version, where)


def _check(name: str, table: ProviderTable) -> None:
    """What only a provider's whole table shows to be missing."""
    preset = table.dialect or name
    if not (table.base_url or dialect(preset, table.kind).base_url):
        raise ConfigError("base_url is missing, and there is no preset of this name")
    if not table.models and not any(served_by(preset)):
        raise ConfigError("models is missing, and the catalogue doesn't know what this provider serves")
    if table.version and table.kind == "openai" and preset != "azure":
        raise ConfigError("version is of Anthropic's, Gemini's and Azure's API; this one has none: remove it")
    kinds = WIRE_FORMATS | {entry.name for entry in entry_points(group="turnout.connectors")}
    if table.kind not in kinds:
        raise ConfigError(f"there is no connector of kind {table.kind}; there are {', '.join(sorted(kinds))}")


def _webhook(table: WebhookTable, environ: Mapping[str, str]) -> Webhook:
    if trouble := address_trouble(table.url, table.private):
        raise ConfigError(trouble)
    if table.secret_env is not None:
        origin, secret = f"environment variable {table.secret_env}", environ.get(table.secret_env, "")
    else:
        origin = f"secret_file {table.secret_file}"
        secret = _text(Path(table.secret_file or ""), origin)
    try:
        known = len(b64decode(secret.strip().removeprefix("whsec_"), validate=True)) >= 24
    except ValueError:
        known = False
    if not known:
        raise ConfigError(f"{origin} holds no signing secret: whsec_ and the base64 of 24 to 64 random bytes")
    return Webhook(table.url, Secret(secret.strip()), table.private)


def _text(file: Path, named: str) -> str:
    """What a file of secrets holds. `named`: it, and who named it."""
    try:
        return file.expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{named} can't be read: {reason}; name a file that holds the key") from None


def _places(table: ProviderTable) -> tuple[str, ...]:
    """As many stand-ins as there are keys: each is an account, with endpoints of its own."""
    return tuple(f"key-{number}" for number, _ in enumerate((*table.api_key, *table.api_key_env, *table.api_key_file)))


def _keys(name: str, table: ProviderTable, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys, each an account of its own; none where a provider (a local one) needs none."""
    found = list(table.api_key)
    for variable in table.api_key_env:
        if (key := _variable(variable, environ)) is None:
            raise ConfigError(f"environment variable {variable} is not set; set it, or remove this provider")
        found.append(key)
    found += [_text(Path(file), f"api_key_file {file}") for file in table.api_key_file]
    preset = dialect(table.dialect or name, table.kind)
    if not found and preset.key_variables and not (table.base_url and preset.base_url):
        # The vendor's own key, to the vendor's own address.
        keys = (_variable(variable, environ) for variable in preset.key_variables)
        if (key := next(filter(None, keys), None)) is None:
            wanted = " or ".join(preset.key_variables)
            raise ConfigError(f"there is no key: set {wanted}, or say where it is in api_key_env or api_key_file")
        found.append(key)
    if not all(re.fullmatch(r"[!-~]+", key) for key in found):
        raise ConfigError("an API key is empty, or holds spaces or characters that no header can carry")
    return tuple(dict.fromkeys(found))


def _variable(name: str, environ: Mapping[str, str]) -> str | None:
    """The key in an environment variable, or in the file that the variable NAME_FILE names."""
    if key := environ.get(name, "").strip():
        return key
    file = environ.get(f"{name}_FILE")
    return _text(Path(file), f"{name}_FILE={file}") if file else None
