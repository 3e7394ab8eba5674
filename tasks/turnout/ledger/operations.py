"""How the ledger's operations are built: a script of `lua/` with its keys, its arguments and a decoder of its reply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from pydantic_core import to_json

from turnout.ledger.content import RESULT, content_name, write_result
from turnout.ledger.job import CLAIMED, Ending, Settlement
from turnout.ledger.keys import Keys
from turnout.ledger.message import TEMPLATE
from turnout.ledger.script import CLOCK, Operation, Script, sources
from turnout.ledger.sealing import Keyring
from turnout.request import CONTRACT_VERSION
from turnout.result import JobResult, celery_record

T = TypeVar("T")

TURNS = 4
"""Fewest jobs of a tenant that may be published in a lane at a time. Each one that is claimed passes its turn on, so a
few are enough to keep a worker busy."""
TURNS_A_SLOT = 1 / 8
"""Turns of a tenant per job that all workers have room for, if that is more. With one for eight, a job behind a flood
waits an eighth of the time that a call takes."""
TENANTS = 200
"""Most tenants that one round checks for turns that came free without a claim."""
RESULTS_KEPT_S = 86_400.0
"""How long results are kept if no worker has announced it yet."""

CONSTANTS = f"""local VERSION = '{CONTRACT_VERSION}'
local MESSAGE = [==[{TEMPLATE}]==]
local TURNS, TURNS_A_SLOT, TENANTS = {TURNS}, {TURNS_A_SLOT}, {TENANTS}
local function CLAIMED() return '{"','".join(CLAIMED)}' end
local function RESULT() return '{"','".join(RESULT)}' end
"""
"""Prepended to every script, so that each of these is defined once."""


class Operations:
    """Builds the operations of one namespace. `clock`: see `script.CLOCK`; `keyring`: seals content."""

    def __init__(self, keys: Keys | None = None, clock: str = CLOCK, keyring: Keyring | None = None) -> None:
        self.keys = keys or Keys()
        self.keyring = keyring or Keyring()
        self._prelude = clock + CONSTANTS + sources("turnout.ledger")["shared"]

    def operation(
        self,
        name: str,
        *args: Any,
        decode: Callable[[Any], T],
        job: str = "",
        batch: str | None = None,
        keys: Sequence[str] | None = None,
        repeatable: bool = False,
    ) -> Operation[T]:
        """Run a script. Its file names its keys; `job` and `batch` say whose they are.

        keys: for the few scripts that take a list of keys instead. repeatable: see `Operation`.
        """
        script = Script.load("turnout.ledger", name, self._prelude)
        keys = self.keys.named(script.keys, job, batch or "") if keys is None else keys
        return script.operation(keys, args, decode, repeatable=repeatable)

    def sealed(self, job_id: str, part: str, text: str) -> bytes:
        return self.keyring.seal(content_name(job_id, part), text.encode())

    def opening(self, read: Callable[[Any, str, Keyring], T], job_id: str) -> Callable[[Any], T]:
        return lambda reply: read(reply, job_id, self.keyring)

    def end(
        self,
        authority: str,
        result: JobResult,
        batch: str | None,
        token: int = 0,
        decision_json: bytes | None = None,
        result_ttl_s: float = RESULTS_KEPT_S,
        failed_ttl_s: float | None = None,
    ) -> Operation[Settlement]:
        """End a job. result_ttl_s: used only for a worker's own job, or if no worker has announced its own."""
        text, status = write_result(result, self.keyring), result.status.value
        event = {"event": status} | ({"why": result.error.code} if result.error else {})
        stored = ("" if result.succeeded else text, celery_record(result, text), event_json(event, decision_json))
        ttl_ms = max(1, ms(result_ttl_s))  # Redis refuses a lifetime of 0
        args = (result.id, authority, token, status, *stored, ttl_ms, ms(failed_ttl_s), batch or "")
        return self.operation("settle", *args, decode=_settled, job=result.id, batch=batch, repeatable=True)


def ms(seconds: float | None) -> int:
    return 0 if seconds is None else max(0, round(seconds * 1000))


def event_json(event: Mapping[str, Any], decision_json: bytes | None = None) -> str:
    """An event for the job's story, without its braces: Lua adds the time."""
    inside = to_json(event)[1:-1]
    return (inside if decision_json is None else b'%b,"decision":%b' % (inside, decision_json)).decode()


def texts(reply: list[bytes]) -> list[str]:
    return [one.decode() for one in reply]


def flat(pairs: Iterable[Iterable[Any]]) -> Iterator[Any]:
    return chain.from_iterable(pairs)


def nothing(reply: Any) -> None: ...


def _settled(reply: list[bytes]) -> Settlement:
    return Settlement(Ending(reply[0].decode()), reply[1].decode())
