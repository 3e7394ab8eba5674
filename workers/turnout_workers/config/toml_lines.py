"""Reads and writes TOML. Errors name the line, which tomllib doesn't keep, so a small scan finds it."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from turnout.errors import TurnoutError

Shape = TypeVar("Shape", bound=BaseModel)
Path = tuple[str, ...]
"""Of a table or key, from the top."""
_HINTS = {
    "api_base": "did you mean base_url?",
    "azure_endpoint": "did you mean base_url?",
    "api_version": "Azure needs none where base_url ends with /openai/v1",
    "rpm": "did you mean requests_per_minute?",
    "tpm": "did you mean tokens_per_minute?",
    "max_parallel_requests": "did you mean concurrency?",
}
"""Hints for fields of LiteLLM's configuration and OpenAI's clients whose names ours don't resemble."""


class ConfigError(TurnoutError):
    """A configuration that can't be used. The message is for the operator, one problem per line."""


def read_text(file: pathlib.Path) -> str:
    """The content of a file. Raises ConfigError."""
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: can't be read: {getattr(error, 'strerror', None) or error}") from None


def read(
    text: str,
    where: str,
    shape: type[Shape],
    environ: Mapping[str, str] | None = None,
    variables: Mapping[str, Path] | None = None,
) -> Shape:
    """Parse, override by environment variables, validate. Raises ConfigError.

    where: the file's name, for errors. variables: environment variables, and the fields that they set.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, at = str(error).partition(" (at ")  # "line 3, column 5)" or "end of document)"
        number = re.search(r"line (\d+)", at)
        line = number[1] if number else text.count("\n") + 1
        raise ConfigError(f"{where}:{line}: this is not TOML: {reason}") from None
    overridden: dict[Path, str] = {}
    for variable, path in (variables or {}).items():
        if value := (environ or {}).get(variable):
            table = data.setdefault(path[0], {}) if len(path) > 1 else data
            if isinstance(table, dict):  # otherwise validation reports the file's error
                table[path[-1]] = value
                overridden[path] = variable
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(each, text, where, overridden, shape) for each in error.errors())
        ) from None


def location(text: str, where: str, path: Path) -> str:
    """`file:line: field`, with the line of the innermost part of the field's path that is in the text."""
    lines = scan(text)
    line = next((f":{lines[path[:n]]}" for n in range(len(path), 0, -1) if path[:n] in lines), "")
    return f"{where}{line}: {'.'.join(path)}"


def _explain(
    error: Mapping[str, Any], text: str, where: str, overridden: Mapping[Path, str], shape: type[BaseModel]
) -> str:
    path = tuple(str(step) for step in error["loc"] if step != "[key]")
    message = str(error["msg"]).removeprefix("Value error, ")
    if variable := overridden.get(path):
        return f"environment variable {variable}: {message}"
    if error["type"] in ("dict_type", "model_type"):
        message = "must be a table"
    elif error["type"] == "extra_forbidden":
        message = "there is no such field"
        if hint := _HINTS.get(path[-1]):
            message += f"; {hint}"
        elif near := difflib.get_close_matches(path[-1], _fields(shape), n=1):
            message += f"; did you mean {near[0]}?"
    return f"{location(text, where, path)}: {message}"


def _fields(shape: type[BaseModel]) -> list[str]:
    """The names of all fields in all tables."""
    schema = shape.model_json_schema()
    tables = (schema, *schema.get("$defs", {}).values())
    return sorted({name for table in tables for name in table.get("properties", ())})


_PART = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_LINE = re.compile(rf"\s*(?:\[\[?\s*(?P<table>{_DOTTED})\s*\]\]?\s*(?:#.*)?$|(?P<key>{_DOTTED})\s*=)")


def scan(text: str) -> dict[Path, int]:
    """The line of every table and key. Not a parser, but good enough to point at a line."""
    found: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if (match := _LINE.match(line)) is None:
            continue
        path = tuple(part.strip("\"'") for part in re.findall(_PART, match["table"] or match["key"]))
        if match["table"]:
            table = path
        found.setdefault(path if match["table"] else table + path, number)
    return found


def dumps(tables: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """TOML for tables of strings, numbers, booleans, lists and sets of these, and tables. None is omitted."""
    inner = {key: value for key, value in tables.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in tables.items() if key not in inner and value is not None}
    lines = [f"\n[{'.'.join(map(_key, path))}]"] if path and (plain or not inner) else []
    # JSON's strings, numbers, booleans and arrays are valid TOML.
    lines += [f"{_key(key)} = {json.dumps(value, ensure_ascii=False, default=sorted)}" for key, value in plain.items()]
    return "\n".join([*lines, *(dumps(value, (*path, key)) for key, value in inner.items())])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
