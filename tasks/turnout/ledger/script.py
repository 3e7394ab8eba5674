"""Redis operations as values: a `Call` says what to run, and how to read the reply. `sending.py` sends it."""

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
"""Put before every script: Redis's clock, the only one. Tests replace it to move time by hand."""


@cache
def sources(package: str) -> Mapping[str, str]:
    """The files in `lua/` of a package by name, all read at once: after an upgrade in place, a process that still runs
    must not find half of them new."""
    return {Path(file.name).stem: file.read_text("utf-8") for file in files(package).joinpath("lua").iterdir()}


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file, and the SHA-1 by which Redis knows it."""

    source: str
    sha: str
    keys: tuple[str, ...] = field(default=(), compare=False)
    """What its line `-- KEYS` names, in this order; the script itself finds them under these names."""

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

    def call(
        self, keys: Iterable[str], args: Iterable[Any], decode: Callable[[Any], T], *, repeatable: bool = False
    ) -> Call[T]:
        keys = tuple(keys)
        return Call(("EVALSHA", self.sha, len(keys), *keys, *args), decode, self, repeatable)


def _named(keys: Sequence[str]) -> Iterator[str]:
    """Lua that makes `KEYS.story` of `KEYS[3]`, and of an `all_…`, which comes last, the table of all that are left."""
    for number, name in enumerate(keys, 1):
        if name.isidentifier():
            value = f"{{unpack(KEYS, {number})}}" if name.startswith("all_") else f"KEYS[{number}]"
            yield f"KEYS.{name} = {value}\n"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One command, and how to read the reply."""

    command: tuple[Any, ...]
    decode: Callable[[Any], T]
    script: Script | None = None
    """The one that it runs, if it runs one."""
    repeatable: bool = False
    """It does no more if it is sent twice, for want of a reply, and the second reply will do."""

    def read(self, reply: Any) -> T:
        """Raises the reply if it is an error."""
        if isinstance(reply, Exception):
            raise reply
        return self.decode(reply)
