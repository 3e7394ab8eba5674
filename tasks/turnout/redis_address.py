"""The address of Redis, with its password taken from a file: as orchestrators mount secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from turnout.errors import TurnoutError


def with_password(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with the content of `REDIS_PASSWORD_FILE`, if that is set, put into its `REDIS_URL`."""
    path, url = environ.get("REDIS_PASSWORD_FILE"), environ.get("REDIS_URL", "")
    if not path:
        return environ
    try:
        password = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TurnoutError(f"REDIS_PASSWORD_FILE {path} can't be read: {error.__class__.__name__}") from None
    parts = urlsplit(url)
    if not parts.hostname or parts.password:
        raise TurnoutError("REDIS_PASSWORD_FILE wants a REDIS_URL without a password, e.g. redis://worker@redis:6379/0")
    at = f"{parts.username or ''}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return {**environ, "REDIS_URL": parts._replace(netloc=at).geturl()}
