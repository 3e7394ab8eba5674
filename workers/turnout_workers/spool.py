"""Settlements that could not be written, kept on disk until Redis is back.

A provider's answer has been paid for. When Redis is away at that moment, the settlement goes to a file, and is
sent when it can be, from this process or from the next one that uses the same folder. The ledger takes a stale
success as long as nobody else has settled the job, so nothing paid for is thrown away.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

logger = logging.getLogger(__name__)


class Spool:
    """A folder of settlements, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, settlement: dict[str, Any]) -> None:
        """Write it so that it is there whole or not at all. Readable by this user only: it holds an answer."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = uuid4().hex
        partial = self._folder / f"{name}.partial"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(settlement, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._folder / f"{name}.json")

    def __iter__(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """What is waiting. The caller deletes a file when its settlement has been taken."""
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield path, json.loads(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                logger.error("spooled settlement %s can't be read: %s", path.name, error)
