"""Redis operations as values: one Lua file each, built apart from whoever sends them.

A `Call` says what to run; `run` sends calls over a blocking connection and `Coalescer` over an asyncio one.
So every operation is written once for both, and any number of them shares one round trip.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

T = TypeVar("T")

_KEYS = re.compile(r"^-- KEYS  (.*(?:\n--   .*)*)", re.MULTILINE)
CLOCK = """local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
"""Put before every script: Redis's clock, the only one. Tests replace it to move time by hand."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file, and the SHA-1 by which Redis knows it."""

    name: str
    source: str
    sha: str
    keys: tuple[str, ...] = field(default=(), compare=False)
    """What its line `-- KEYS` names, in this order; the script itself finds them under these names."""

    @staticmethod
    @cache
    def load(package: str, name: str, clock: str = CLOCK) -> Script:
        """Read `lua/NAME.lua` of `package`; the first line may be a `#!lua` shebang, which stays first."""
        text = files(package).joinpath("lua", f"{name}.lua").read_text("utf-8")
        shebang, rest = text.split("\n", 1) if text.startswith("#!") else ("", text)
        named = _KEYS.search(text)
        keys = tuple(re.split(r",(?: |\n-- +)", named[1])) if named else ()
        source = (f"{shebang}\n" if shebang else "") + clock + "".join(_named(keys)) + rest
        return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(), keys)

    def call(self, keys: Iterable[str], args: Iterable[Any], decode: Callable[[Any], T]) -> Call[T]:
        keys = tuple(keys)
        return Call(("EVALSHA", self.sha, len(keys), *keys, *args), decode, self)


def _named(keys: Sequence[str]) -> Iterator[str]:
    """Lua that makes `KEYS.story` of `KEYS[3]`, and of an `all_…`, which comes last, the table of all that are left."""
    for number, name in enumerate(keys, 1):
        if name.isidentifier():
            value = f"{{unpack(KEYS, {number})}}" if name.startswith("all_") else f"KEYS[{number}]"
            yield f"KEYS.{name} = {value}\n"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One command, and how to read the answer. `script`: the one that it runs, if it runs one."""

    command: tuple[Any, ...]
    decode: Callable[[Any], T]
    script: Script | None = None


Exchange = Callable[[redis.asyncio.Redis, Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]

_known: WeakKeyDictionary[redis.Redis, set[Script]] = WeakKeyDictionary()
"""The scripts that each client has loaded."""


def run(client: redis.Redis, calls: Sequence[Call[Any]]) -> list[Any]:
    """Send all calls in one round trip, in order; raises the first error after all were sent.

    Just after a restart of Redis, which has then forgotten the scripts, plain reads may come first.
    """
    known = _known.setdefault(client, set())
    replies = _execute(client, calls, _scripts(calls) - known)
    if missing := _missing(replies):
        # What was refused for want of its script has not run, so it is safe to send it again.
        again = [calls[i] for i in missing]
        for i, reply in zip(missing, _execute(client, again, _scripts(again)), strict=True):
            replies[i] = reply
    known |= _scripts(calls)
    return [_decode(call, reply) for call, reply in zip(calls, replies, strict=True)]


def _execute(client: redis.Redis, calls: Sequence[Call[Any]], scripts: Collection[Script]) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for command in _commands(calls, scripts):
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        return list(pipe.execute(raise_on_error=False))[len(scripts) :]


def _commands(calls: Sequence[Call[Any]], scripts: Collection[Script]) -> Iterator[tuple[Any, ...]]:
    """The scripts are loaded first, so that nothing is held up for want of them, and the order is kept."""
    yield from (("SCRIPT", "LOAD", script.source) for script in scripts)
    yield from (call.command for call in calls)


def _scripts(calls: Sequence[Call[Any]]) -> set[Script]:
    return {call.script for call in calls if call.script is not None}


def _missing(replies: Sequence[Any]) -> list[int]:
    return [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def _decode(call: Call[T], reply: Any) -> T:
    if isinstance(reply, Exception):
        raise reply
    return call.decode(reply)


async def pipelined(client: redis.asyncio.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """One round trip for all; gives a reply for each, in order: what Redis refused as the error, unraised."""
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))


class Coalescer:
    """Sends calls of concurrent coroutines together: what arrives while one batch is under way is the next.

    A caller that is cancelled leaves its command running to its end, and nobody else ever reads its reply.
    `exchange`: how commands travel, should a caller know a faster way than redis-py's.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        max_batch: int = 256,
        exchange: Exchange = pipelined,
    ) -> None:
        self._client = client
        self._max_batch = max_batch
        self._exchange = exchange
        self._queue: list[tuple[Call[Any], asyncio.Future[Any]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._known: set[Script] = set()

    async def __call__(self, call: Call[T]) -> T:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((call, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return _decode(call, await future)

    async def all(self, *calls: Call[Any]) -> list[Any]:
        """Several calls that travel together; they run in this order."""
        return await asyncio.gather(*(self(call) for call in calls))

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(0)  # let every coroutine that is ready now add its call
            while self._queue:
                batch, self._queue = self._queue[: self._max_batch], self._queue[self._max_batch :]
                try:
                    replies = await self._send([call for call, _ in batch])
                except Exception as error:
                    # A copy for each: one that all raise would gather the frames of all, and Celery, which clears
                    # the frames of a failed task, would close the coroutines that go on after it.
                    replies = [copy(error) for _ in batch]
                for (_, future), reply in zip(batch, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)
        finally:
            self._flusher = None

    async def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        scripts = _scripts(calls)
        replies = await self._execute(calls, scripts - self._known)
        if missing := _missing(replies):
            again = [calls[i] for i in missing]
            for i, reply in zip(missing, await self._execute(again, _scripts(again)), strict=True):
                replies[i] = reply
        self._known |= scripts
        return replies

    async def _execute(self, calls: Sequence[Call[Any]], scripts: Collection[Script]) -> list[Any]:
        try:
            return (await self._exchange(self._client, [*_commands(calls, scripts)]))[len(scripts) :]
        except RuntimeError as error:
            # What uvloop says of writing to a connection that has just been closed, where asyncio has an OSError.
            raise redis.ConnectionError(str(error)) from error
