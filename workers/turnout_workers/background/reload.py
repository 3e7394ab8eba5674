"""Reloads a worker's configuration: a valid change takes effect as a whole, an invalid one not at all.

The file, and the key files that it names, are read again every few seconds. So no signal is needed, and a mounted
secret is reloaded like any file; so is a `turnout.toml` that did not exist at first. List prices depend on the time of
day: the same configuration is applied again when they may have changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from turnout.errors import TurnoutError
from turnout_workers.config import Settings, Source, load
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.loading import DEFAULT_FILE, RELOADABLE
from turnout_workers.config.tables import Config
from turnout_workers.providers import prices

logger = logging.getLogger(__name__)

EVERY_S = 2.0
"""A change takes effect once it was read twice alike: the file may be half written at first."""


class Reload:
    def __init__(
        self,
        current: CurrentConfig,
        use: Callable[[Settings], None],
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
    ) -> None:
        """use: puts a configuration into effect, or raises and leaves everything as it was."""
        self._current, self._use, self._environ, self._now = current, use, environ, now
        self._at_start, self._last_read, self._priced = current.config, current.settings, prices.period(now())
        self._refused = ""

    async def check(self) -> None:
        """Read the configuration once."""
        current = self._current.settings
        try:
            found = await asyncio.to_thread(_read, current.source, self._environ)
            steady, self._last_read = found == self._last_read, found
            if steady and found != current:
                self._use(found)
                before = "with other keys" if found.version == current.version else f"was {current.version}"
                logger.info("now using configuration %s (%s)", found.version, before)
                if unapplied := _needs_restart(self._at_start, found.config):
                    logger.warning("restart this worker to apply: %s", ", ".join(unapplied))
            elif (quarter := prices.period(self._now())) != self._priced:
                self._use(current)
                self._priced = quarter
            self._refused = ""
        except (TurnoutError, ValueError, LookupError) as error:
            if str(error) != self._refused:
                logger.error("the changed configuration can't be used; %s stays in effect:\n%s", current.version, error)
            self._refused = str(error)


def _read(source: Source, environ: Mapping[str, str]) -> Settings:
    appeared = source.made is not None and Path(DEFAULT_FILE).exists()
    return load(Source(DEFAULT_FILE) if appeared else source, environ)


def _needs_restart(before: Config, after: Config) -> list[str]:
    """The changed tables and fields that take effect only at a worker's start."""
    old, new = (file.model_dump(exclude=RELOADABLE) for file in (before, after))
    return [name for name in old if old[name] != new[name]]
