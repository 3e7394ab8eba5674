"""Redis operations as values: an `Operation` says what to run and how to read the reply. `sending.py` sends it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_KEYS = re.compile(r"^-- KEYS  (.*(?:\n--   .*)*)", re.MULTILINE)
CLOCK = """local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
"""Prepended to every script: Redis's clock, the only one. Tests replace it to control time."""


@cache
def sources(package: str) -> Mapping[str, str]:
    """The files in `lua/` of a package by name. All are read at once, so that a process that runs
    through an upgrade in place never mixes old and new ones."""
    return {Path(file.name).stem: file.read_text("utf-8") for file in files(package).joinpath("lua").iterdir()}


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file, and the SHA-1 by which Redis knows it."""

    source: str
    sha: str
    keys: tuple[str, ...] = field(default=(), compare=False)
    """The names on its line `-- KEYS`, in order. In the script, `KEYS.name` works too."""

    @staticmethod
    @cache
    def load(package: str, name: str, clock: str = CLOCK) -> Script:
        """Read `lua/NAME.lua` of `package`; the first line may be a `#!lua` shebang, which stays first."""
        text = sources(package)[name]
        shebang, rest = text.split("\n", 1) if text.startswith("#!") else ("", text)
        named = _KEYS.search(text)
        keys = tuple(re.split(r",(?: |\n-- +)", named[1])) if named else ()
        source = (f"{shebang}\n" if shebang else "") + clock + "".join(_named(keys)) + rest
        return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(), keys)

    def operation(
        self, keys: Iterable[str], args: Iterable[Any], decode: Callable[[Any], T], *, repeatable: bool = False
    ) -> Operation[T]:
        keys = tuple(keys)
        return Operation(("EVALSHA", self.sha, len(keys), *keys, *args), decode, self, repeatable)


def _named(keys: Sequence[str]) -> Iterator[str]:
    """Lua that lets scripts write `KEYS.story` for `KEYS[3]`. An `all_…` comes last, and is the table of all that are
    left."""
    for number, name in enumerate(keys, 1):
        if name.isidentifier():
            value = f"{{unpack(KEYS, {number})}}" if name.startswith("all_") else f"KEYS[{number}]"
            yield f"KEYS.{name} = {value}\n"


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One Redis command, and how to read its reply."""

    command: tuple[Any, ...]
    decode: Callable[[Any], T]
    script: Script | None = None
    """The script that it runs, if any."""
    repeatable: bool = False
    """It may be sent again when its reply was lost: that does nothing more, and the second reply is as good."""

    def read(self, reply: Any) -> T:
        """Decode the reply; raises it if it is an error."""
        if isinstance(reply, Exception):
            raise reply
        return self.decode(reply)
