"""Configuration: `turnout.toml` and the environment become frozen values, checked once.

The file is described by the tables below and shown whole in `turnout.example.toml`. Every error names file,
line and field, or the environment variable, and what to do. `load` is a pure function of the file's content
and the environment given to it, so a reload is another `load` whose result replaces the old one or doesn't.

Where no file is given, `discovered` makes the same tables from the keys that the environment has.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from turnout.errors import TurnoutError
from turnout.request import Capability, Lane, Name, Quality, RoutingStrategy, Value


class ConfigError(TurnoutError):
    """A configuration that can't be used. Its text is for the operator, one problem a line."""


# --- what the file may hold ------------------------------------------------------------------------------


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _named_models(value: object) -> object:
    """A list of names, or a table whose values may be just the provider's name."""
    if isinstance(value, list):
        return {name: {} for name in value if isinstance(name, str)}
    if isinstance(value, dict):
        return {ours: {"name": told} if isinstance(told, str) else told for ours, told in value.items()}
    return value


def _every_lane(value: object) -> object:
    """A lane that the file leaves out keeps its own default."""
    return {**_RESERVED, **value} if isinstance(value, dict) else value


def _http(url: str) -> str:
    if not re.match(r"https?://[^\s/]+", url):
        raise ValueError("must be an http:// or https:// address")
    return url.rstrip("/")


ProviderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Strings = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Url = Annotated[str, AfterValidator(_http)]
Usd = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class LimitFields(Value):
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_day: Count | None = None
    concurrency: Count | None = None


class ModelTable(LimitFields):
    """What the operator knows better than the catalogue, of one model at one provider."""

    name: str | None = None
    """The provider's own name; None: as the catalogue has it, else ours."""
    input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None
    cache_read_usd_per_mtok: Usd | None = None
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    capabilities: frozenset[Capability] | None = None
    quality: Quality | None = None
    aliases: Strings = ()
    priority: int | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    expected_ttft_s: Seconds | None = None
    expected_s_per_token: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _whole_price(self) -> ModelTable:
        if (self.input_usd_per_mtok is None) != (self.output_usd_per_mtok is None):
            raise ValueError("give both input_usd_per_mtok and output_usd_per_mtok, or neither")
        return self


class ProviderTable(LimitFields):
    """One provider: how to reach it, and what it offers."""

    kind: str = "openai"
    """The wire format: openai, anthropic, gemini, or one that another package registers."""
    dialect: str | None = None
    """A preset of the wire format; None: the provider's name, where there is a preset of that name."""
    base_url: Url | None = None
    """None: the preset's."""
    api_key_env: Strings = ()
    api_key_file: Strings = ()
    api_key: Strings = Field(default=(), repr=False)
    """Several keys, of whichever origin, are several accounts, each with the limits given here."""
    models: Annotated[dict[Name, ModelTable], BeforeValidator(_named_models)] = Field(default_factory=dict)
    priority: int = 100
    weight: Annotated[float, Field(gt=0)] = 1.0
    regions: frozenset[str] = frozenset()
    no_training: bool = False
    zero_retention: bool = False
    version: str | None = None
    """Of the provider's API, where it has one: Anthropic's date, Gemini's v1 or v1beta, Azure's."""
    headers: dict[str, str] = Field(default_factory=dict)
    simulated: bool = False
    """Its answers are made up; every result says so."""


class RouterTable(Value):
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED
    health_check_interval: Seconds = 30.0
    failover_cooldown: Seconds = 60.0


class WorkerTable(Value):
    concurrency: Annotated[int, Field(gt=0, le=10_000)] = 100
    """Jobs in flight in one worker process."""
    drain_s: Seconds = 30.0
    """How long a stopping worker lets its calls finish."""


class LaneTable(Value):
    reserved_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of each rate limit: what this lane leaves to the more urgent ones."""


_RESERVED = {"interactive": {}, "standard": {"reserved_share": 0.10}, "batch": {"reserved_share": 0.35}}
"""Enough to keep interactive jobs fast under three times the load that the limits allow (simulated)."""


class CeilingTable(Value):
    per_day_usd: Usd | None = None
    per_month_usd: Usd | None = None


class CeilingsTable(Value):
    """Most that may be spent; days and months are UTC's."""

    total: CeilingTable = CeilingTable()
    tenants: dict[Name, CeilingTable] = Field(default_factory=dict)
    """By tenant; the name `*` stands for every tenant not named."""
    providers: dict[Name, CeilingTable] = Field(default_factory=dict)


class RetentionTable(Value):
    results_s: Seconds = 86_400.0
    """How long a settled job and its result are kept."""
    failed_s: Seconds = 7 * 86_400.0
    """The same for failed jobs, which can be replayed."""
    decisions_s: Seconds = 86_400.0


class MonitoringTable(Value):
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """None: no metrics endpoint; 0: any free port."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    task_events: bool = True
    """Tell Flower of every task."""


class File(Value):
    """The whole of turnout.toml."""

    redis_url: str | None = None
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "turnout"
    router: RouterTable = RouterTable()
    worker: WorkerTable = WorkerTable()
    lanes: Annotated[dict[Lane, LaneTable], BeforeValidator(_every_lane)] = Field(
        default_factory=dict, validate_default=True
    )
    ceilings: CeilingsTable = CeilingsTable()
    retention: RetentionTable = RetentionTable()
    monitoring: MonitoringTable = MonitoringTable()
    providers: dict[ProviderName, ProviderTable] = Field(default_factory=dict)


FROM_ENVIRONMENT = {
    "REDIS_URL": ("redis_url",),
    "TURNOUT_NAMESPACE": ("namespace",),
    "TURNOUT_CONCURRENCY": ("worker", "concurrency"),
    "TURNOUT_STRATEGY": ("router", "default_strategy"),
    "TURNOUT_METRICS_PORT": ("monitoring", "metrics_port"),
    "TURNOUT_LOG_FORMAT": ("monitoring", "log_format"),
    "TURNOUT_LOG_LEVEL": ("monitoring", "log_level"),
}
"""Environment variables that override the file, and the fields that they set."""


# --- what the rest of Turnout gets ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked configuration. Nothing in it shows a key when printed."""

    file: File
    """All but the providers: router, worker, lanes, ceilings, retention, monitoring."""
    keys: Mapping[str, tuple[str, ...]] = field(repr=False)
    version: str
    """Hash of the content, keys included: a reload that changes nothing has the same one."""
    source: str
    """Where it came from, for people."""

    @property
    def redis_url(self) -> str:
        return self.file.redis_url or "redis://127.0.0.1:6379/0"

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


def configured(environ: Mapping[str, str]) -> Settings:
    """The configuration of this process. Raises ConfigError if there is none: a worker guesses nothing."""
    if (path := find(environ, Path.cwd())) is None:
        raise ConfigError("no configuration: set TURNOUT_CONFIG to a turnout.toml, or put one into this folder")
    return load(path, environ)


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Read and check a file. Raises ConfigError. Keys come from `environ` and the files that it names."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    return settings(text, str(path), environ)


def settings(text: str, where: str, environ: Mapping[str, str]) -> Settings:
    """The same for a text."""
    file = read(text, where, environ)
    problems: list[str] = []
    keys: dict[str, tuple[str, ...]] = {}
    for name, table in file.providers.items():
        try:
            keys[name] = _keys(table, environ)
        except ConfigError as error:
            at = _lines(text).get(("providers", name))
            problems.append(f"{where}{f':{at}' if at else ''}: providers.{name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    content = json.dumps([text, keys, {name: environ.get(name) for name in FROM_ENVIRONMENT}])
    version = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Settings(file, keys, version, where)


def _keys(table: ProviderTable, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys, each an account of its own; none where a provider (a local one) needs none."""
    found = list(table.api_key)
    for variable in table.api_key_env:
        if not (value := environ.get(variable, "").strip()):
            raise ConfigError(f"environment variable {variable} is not set; set it, or remove this provider")
        found.append(value)
    for file in table.api_key_file:
        try:
            found.append(Path(file).expanduser().read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"api_key_file {file} can't be read: {reason}") from None
    if any(not key or not key.isascii() or not key.isprintable() for key in found):
        raise ConfigError("an API key is empty, or holds spaces or characters that no header can carry")
    return tuple(dict.fromkeys(found))


# --- reading it ------------------------------------------------------------------------------------------


def read(text: str, where: str = "turnout.toml", environ: Mapping[str, str] = {}) -> File:
    """Check a configuration's text, with the environment's overrides. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f":{at.group(1)}" if at else ""
        reason = re.sub(r"\s*\(at .*\)$", "", str(error))
        raise ConfigError(f"{where}{line}: this is not TOML: {reason}") from None
    overridden: dict[tuple[str, ...], str] = {}
    for variable, path in FROM_ENVIRONMENT.items():
        if value := environ.get(variable):
            table = data
            for step in path[:-1]:
                table = table.setdefault(step, {})
            table[path[-1]] = value
            overridden[path] = variable
    try:
        # Lax, as environment variables are text; TOML's own types are checked all the same.
        return File.model_validate(data)
    except ValidationError as error:
        lines = _lines(text)
        raise ConfigError("\n".join(_explain(e, where, lines, overridden) for e in error.errors())) from None


def _explain(
    error: Mapping[str, Any],
    where: str,
    lines: Mapping[tuple[str, ...], int],
    overridden: Mapping[tuple[str, ...], str],
) -> str:
    path = tuple(str(step) for step in error["loc"] if step != "[key]")
    if variable := overridden.get(path):
        return f"environment variable {variable}: {error['msg']}"
    known = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    at = where if known is None else f"{where}:{known}"
    said = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        said = "there is no such field"
        if near := difflib.get_close_matches(path[-1], _FIELDS, n=1):
            said += f"; did you mean {near[0]}?"
    return f"{at}: {'.'.join(path)}: {said}"


_TABLES: tuple[type[Value], ...] = (
    File, ProviderTable, ModelTable, RouterTable, WorkerTable, LaneTable, CeilingTable, CeilingsTable,
    RetentionTable, MonitoringTable,
)  # fmt: skip
_FIELDS = sorted({name for table in _TABLES for name in table.model_fields})
_PART = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_LINE = re.compile(rf"\s*(?:\[\[?\s*(?P<table>{_DOTTED})\s*\]\]?\s*(?:#.*)?$|(?P<key>{_DOTTED})\s*=)")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every table and key (tomllib tells none). A scan, good enough to point at a line."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if (match := _LINE.match(line)) is None:
            continue
        path = tuple(part.strip("\"'") for part in re.findall(_PART, match["table"] or match["key"]))
        if match["table"]:
            table = path
        found.setdefault(path if match["table"] else table + path, number)
    return found
