"""Child processes that don't outlive their parent.

`turnout run` leaves none of them behind: not on Ctrl-C, not on an error, not when it is killed itself. On Linux the
kernel ensures the last (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from turnout.errors import TurnoutError

PR_SET_PDEATHSIG = 1  # prctl(2)
SHORT_LIFE_S, SHORT_LIVES = 30.0, 3
"""A child that ends within `SHORT_LIFE_S` of its start `SHORT_LIVES` times in a row isn't started again."""


class StartFailed(TurnoutError):
    """A child did not start. The message says why, and what to do."""


def _die_with_parent(signum: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: the child may only make simple calls
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signum)


def start(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, on_parent_death: int = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    """Start a child that dies with us. It doesn't share our terminal's Ctrl-C: we decide when it stops."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent(on_parent_death),
        )


class Supervised:
    """A child that is started again when it ends by itself, unless it keeps ending soon after its start."""

    def __init__(self, name: str, begin: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self.process = begin()
        self._begin = begin
        self._began_at = time.monotonic()
        self._short_lives = 0

    def restart_if_ended(self) -> str | None:
        """Restart it if needed. Returns what happened, or None. Raises StartFailed if it keeps ending."""
        if (code := self.process.poll()) is None:
            return None
        lived_s = time.monotonic() - self._began_at
        self._short_lives = self._short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        ended = f"{self.name} ended by itself, " + (f"killed by signal {-code}" if code < 0 else f"with code {code}")
        if self._short_lives >= SHORT_LIVES:
            raise StartFailed(f"{ended}, {SHORT_LIVES} times within {SHORT_LIFE_S:g} s of its start; see its log")
        self.process, self._began_at = self._begin(), time.monotonic()
        return f"{ended}, and was started again"


def stop(*processes: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """Terminate all, wait, then kill what is left; kill at once if interrupted."""
    running, ends_at = [process for process in processes if process.poll() is None], time.monotonic() + grace_s
    for process in running:
        process.terminate()
    try:
        for process in running:
            process.wait(max(0.0, ends_at - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in running:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    """Poll until `ready()`; raises StartFailed with the end of the child's log if it exits or takes too long."""
    ends_at = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < ends_at:
        if ready():
            return
        time.sleep(0.01)
    how = f"was not ready after {limit_s:g} s" if process.poll() is None else f"exited with {process.returncode}"
    raise StartFailed(f"{process.args!r} {how}. Its log ends:\n{log.read_text('utf-8', 'replace')[-2000:]}")


def bind_free_port() -> socket.socket:
    """A socket bound to a free port on loopback. On Linux a server can still listen on it, since both set SO_REUSEADDR,
    and the system gives it to no other process."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that stays reserved for a child, before its start and during restarts."""
    with bind_free_port() as bound:
        port = int(bound.getsockname()[1])
        if sys.platform != "linux":  # where the child couldn't listen on it either
            bound.close()
        yield port
