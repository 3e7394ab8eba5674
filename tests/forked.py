"""`turnout` commands forked from a process that has imported all of it already: a start costs a tenth.

Everything that they read from their environment, they read after the fork, as `turnout worker` would.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1  # prctl(2)

PRELOADED = """
turnout.cli turnout_workers.commands.worker turnout_workers.consumer turnout_workers.monitoring.logs
celery.apps.worker celery.app.control celery.app.log celery.backends.redis celery.events.dispatcher celery.fixups.django
celery.worker.autoscale celery.worker.consumer.delayed_delivery celery.worker.strategy kombu.pidbox certifi
turnout_workers.simulator.command
"""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED.split())


class Forked:
    """`turnout ARGUMENTS` in a process of its own; what `subprocess.Popen` can do that the tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        """before: called in the process before the command."""
        self.args = ["turnout", *arguments]
        log.touch()
        told = (list(arguments), {**os.environ, **environ}, str(log), before)
        self._process = _context.Process(target=_run, args=told)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.log = log

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], environ: dict[str, str], log: str, before: Callable[[], None] | None) -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from turnout.cli import main

    if before is not None:
        before()
    sys.argv = ["turnout", *arguments]
    main()
