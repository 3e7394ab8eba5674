"""Settlements that could not be written, kept on disk until Redis is back.

A provider's answer has been paid for. When Redis is away at that moment, the settlement goes to a file. It is sent
later, by this process or by another one of its fleet that uses the same folder. The ledger accepts a stale success as
long as the job isn't settled otherwise, so nothing paid for is thrown away.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from redis.exceptions import ResponseError

from turnout.errors import Unreadable
from turnout.ledger import Coalescer, Ledger, open_result
from turnout.redis_address import place
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.state.store import WorkersStore

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MALFORMED = (AttributeError, LookupError, TypeError, ValueError)
"""Raised by reading a file that isn't a settlement, or comes from another release."""


class Spool:
    """A folder of settlements, one file each."""

    def __init__(self, folder: Path, redis_url: str, namespace: str) -> None:
        """redis_url, namespace: where this worker settles all its life, whatever its configuration says later."""
        self._folder = folder
        self.fleet = f"{place(redis_url)} {namespace}"
        """The fleet whose settlements it keeps: several may share a folder."""

    def trouble(self) -> OSError | None:
        """Why nothing can be kept in it, if so."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            TemporaryFile(dir=self._folder).close()
        except OSError as error:
            return error
        return None

    def keep(self, settlement: dict[str, Any]) -> Path:
        """Write it completely or not at all. Only this user can read it, because it holds an answer."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = uuid4().hex
        partial = self._folder / f"{name}.partial"
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"fleet": self.fleet, **settlement}, file)
                file.flush()
                os.fsync(file.fileno())
            return partial.rename(self._folder / f"{name}.json")
        except OSError:  # the disk may be full: don't leave half a file on it
            partial.unlink(missing_ok=True)
            raise

    def __iter__(self) -> Iterator[Path]:
        """The waiting files. The caller drops a file once its settlement has been accepted."""
        return iter(sorted(self._folder.glob("*.json")))

    def read(self, path: Path) -> Any:
        return json.loads(path.read_text("utf-8"))

    def drop(self, path: Path) -> bool:
        """False: another worker on this machine was faster."""
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def put_aside(self, path: Path) -> None:
        path.rename(path.with_suffix(".refused"))


@dataclass(frozen=True, slots=True)
class SpoolDrain:
    """Sends spooled settlements to the ledger, in every worker."""

    spool: Spool
    ledger: Ledger
    send: Coalescer
    store: WorkersStore
    current: CurrentConfig
    _logged: set[str] = field(default_factory=set, init=False)
    """Names of other fleets' files that were logged."""

    async def settle_all(self) -> None:
        """Try each once."""
        for path in self.spool:
            await self._settle(path)

    async def _settle(self, path: Path) -> None:
        try:
            kept = self.spool.read(path)
            # An earlier release wrote no fleet.
            if (fleet := kept.get("fleet")) is not None and fleet != self.spool.fleet:
                if path.name not in self._logged:
                    self._logged.add(path.name)
                    logger.warning("spooled settlement %s is left to the fleet at %s", path.name, fleet)
                return
            result = open_result(kept["result"], kept["job"], self.ledger.keyring)
            keep, token, batch = self.current.config.retention, kept["token"], kept["batch"]
            taken = await self.send(
                self.ledger.settle(token, result, None, keep.results_s, batch, keep.failed_s, from_spool=True)
            )
        except FileNotFoundError:
            return  # another worker on this machine was faster
        except OSError as error:
            logger.error("spooled settlement %s waits: %s", path.name, error)
            return
        except (Unreadable, ResponseError, *MALFORMED) as error:
            if isinstance(error, Unreadable) and error.key is not None:
                logger.error("spooled settlement %s waits for its key: %s", path.name, error)
                return
            logger.error("spooled settlement %s can't be used and is put aside: %r", path.name, error)
            self.spool.put_aside(path)
            return
        if result.succeeded and not (taken.accepted or taken.duplicate):
            logger.error("spooled settlement %s is not accepted (%s) and is put aside", path.name, taken.outcome.value)
            self.spool.put_aside(path)
        elif self.spool.drop(path):
            if taken.duplicate and result.cost_microusd:
                await self.store.mark_duplicate(kept["accounts"], result.attempts[-1].cost_microusd)
            await self.send(self.ledger.close_account(result.id))
