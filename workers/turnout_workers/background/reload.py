"""A worker follows its configuration: a change that is right is taken over whole, one that isn't changes nothing.

The file, and the files of keys that it names, are read again every few seconds, so that nothing need be told
to anybody, and a mounted secret is followed as any file; so is a `turnout.toml` that was not there at first. List
prices go by the time of day: the same configuration is taken over again when they may have changed.
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
"""A change is taken over once it was read twice alike: half a file is no configuration."""


class Reload:
    def __init__(
        self,
        current: CurrentConfig,
        use: Callable[[Settings], None],
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
    ) -> None:
        """use: takes a configuration over, so that it is in force, or raises and leaves all as it was."""
        self._current, self._use, self._environ, self._now = current, use, environ, now
        self._begun, self._last_read, self._priced = current.config, current.settings, prices.period(now())
        self._refused = ""

    async def check(self) -> None:
        """Read it once."""
        current = self._current.settings
        try:
            found = await asyncio.to_thread(_read, current.source, self._environ)
            steady, self._last_read = found == self._last_read, found
            if steady and found != current:
                self._use(found)
                changed = "with other keys" if found.version == current.version else f"instead of {current.version}"
                logger.info("configuration %s is followed now, %s", found.version, changed)
                if fixed := _fixed(self._begun, found.config):
                    logger.warning("restart this worker for what else has changed since it began: %s", ", ".join(fixed))
            elif (quarter := prices.period(self._now())) != self._priced:
                self._use(current)
                self._priced = quarter
            self._refused = ""
        except (TurnoutError, ValueError, LookupError) as error:
            if str(error) != self._refused:
                logger.error("the configuration as it is now can't be used, %s stays:\n%s", current.version, error)
            self._refused = str(error)


def _read(source: Source, environ: Mapping[str, str]) -> Settings:
    appeared = source.made is not None and Path(DEFAULT_FILE).exists()
    return load(Source(DEFAULT_FILE) if appeared else source, environ)


def _fixed(before: Config, after: Config) -> list[str]:
    """Tables and fields that differ, of those that hold for a worker's whole life."""
    old, new = (file.model_dump(exclude=RELOADABLE) for file in (before, after))
    return [name for name in old if old[name] != new[name]]
