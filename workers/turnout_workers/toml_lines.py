"""TOML whose errors name the line. tomllib tells none for values, so a small scan finds them."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from turnout.errors import TurnoutError

T = TypeVar("T")
Path = tuple[str, ...]
"""Of a table or key, from the top."""


class ConfigError(TurnoutError):
    """A configuration that can't be used. Its text is for the operator, one problem a line."""


def read(
    text: str,
    where: str,
    validate: Callable[[dict[str, Any]], T],
    fields: Collection[str],
    environ: Mapping[str, str] | None = None,
    variables: Mapping[str, Path] | None = None,
) -> T:
    """Parse, override by environment variables, validate by pydantic. Raises ConfigError.

    where: the file's name, for errors. fields: all there are, to suggest one for a misspelt one.
    variables: environment variables, and the fields that they set.
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
            if isinstance(table, dict):  # if not, that is an error of the file's, told below
                table[path[-1]] = value
                overridden[path] = variable
    try:
        return validate(data)
    except ValidationError as error:
        lines = scan(text)
        told = (_explain(each, where, lines, overridden, fields) for each in error.errors())
        raise ConfigError("\n".join(told)) from None


def at(where: str, path: Path, lines: Mapping[Path, int]) -> str:
    """`file:line` of a field, or of the innermost table around it that has a line."""
    known = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    return where if known is None else f"{where}:{known}"


def _explain(
    error: Mapping[str, Any],
    where: str,
    lines: Mapping[Path, int],
    overridden: Mapping[Path, str],
    fields: Collection[str],
) -> str:
    path = tuple(str(step) for step in error["loc"] if step != "[key]")
    said = str(error["msg"]).removeprefix("Value error, ")
    if variable := overridden.get(path):
        return f"environment variable {variable}: {said}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        said = "there is no such field"
        if near := difflib.get_close_matches(path[-1], fields, n=1):
            said += f"; did you mean {near[0]}?"
    return f"{at(where, path, lines)}: {'.'.join(path)}: {said}"


_PART = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_LINE = re.compile(rf"\s*(?:\[\[?\s*(?P<table>{_DOTTED})\s*\]\]?\s*(?:#.*)?$|(?P<key>{_DOTTED})\s*=)")


def scan(text: str) -> dict[Path, int]:
    """The line of every table and key: good enough to point at, not a parser."""
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
