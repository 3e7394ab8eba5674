"""Configuration: `turnout.toml` and the environment become frozen values, checked once.

The file is described by `tables.py` and shown whole in `turnout.example.toml`. Every error names file,
line and field, or the environment variable, and what to do. `load` is a pure function of the file's content
and the environment given to it, so a reload is another `load` whose result replaces the old one or doesn't.

Where there is no file, `discovery.py` makes the same tables from the keys that the environment has.
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
from typing import Any

from pydantic import ValidationError

from turnout.errors import TurnoutError
from turnout.request import Value
from turnout_workers import discovery, tables
from turnout_workers.tables import File, ProviderTable


class ConfigError(TurnoutError):
    """A configuration that can't be used. Its text is for the operator, one problem a line."""


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


def configured(environ: Mapping[str, str], folder: Path | None = None) -> Settings:
    """The configuration of this process: the file that `find` finds, else the environment's keys."""
    if (path := find(environ, folder or Path.cwd())) is not None:
        return load(path, environ)
    if found := discovery.from_environment(environ):
        return settings(discovery.toml(found), "the environment", environ)
    raise ConfigError(
        "no provider is configured: set an API key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, "
        "GEMINI_API_KEY, …), or write a turnout.toml (see turnout.example.toml) and name it in TURNOUT_CONFIG"
    )


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
    if not all(re.fullmatch(r"[!-~]+", key) for key in found):
        raise ConfigError("an API key is empty, or holds spaces or characters that no header can carry")
    return tuple(dict.fromkeys(found))


# --- reading it ------------------------------------------------------------------------------------------


def read(text: str, where: str = "turnout.toml", environ: Mapping[str, str] = {}) -> File:
    """Check a configuration's text, with the environment's overrides. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, at = str(error).partition(" (at ")  # "line 3, column 5)" or "end of document)"
        number = re.search(r"line (\d+)", at)
        line = number[1] if number else text.count("\n") + 1
        raise ConfigError(f"{where}:{line}: this is not TOML: {reason}") from None
    overridden: dict[tuple[str, ...], str] = {}
    for variable, path in FROM_ENVIRONMENT.items():
        if value := environ.get(variable):
            table = data.setdefault(path[0], {}) if len(path) > 1 else data
            if isinstance(table, dict):  # if not, that is an error of the file's, told below
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


_TABLES = (table for table in vars(tables).values() if isinstance(table, type) and issubclass(table, Value))
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
