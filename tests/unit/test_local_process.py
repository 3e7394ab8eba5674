"""Children of a command: started again when they die, given up when that is of no use, ended for sure."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from turnout_workers.local.process import SHORT_LIVES, StartFailed, Supervised, start, stop, wait_until


def child(log: Path, script: str) -> subprocess.Popen[bytes]:
    return start(["/bin/sh", "-c", script], log)


def test_one_that_keeps_ending_at_once_is_started_again_a_few_times_and_no_more(tmp_path: Path) -> None:
    supervised = Supervised("it", lambda: child(tmp_path / "log", "exit 3"))
    for _ in range(SHORT_LIVES - 1):
        supervised.process.wait()
        assert supervised.restart_if_ended() == "it ended by itself, with code 3, and was started again"
    supervised.process.wait()
    with pytest.raises(StartFailed, match=r"^it ended by itself, with code 3, 3 times within 30 s of its start"):
        supervised.restart_if_ended()


def test_one_that_does_not_come_up_is_told_of_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(StartFailed, match=r"exited with 1. Its log ends:\nno room\n$"):
        wait_until(lambda: False, child(log, "echo no room; exit 1"), log, 60)
    slow = child(log, "sleep 60")
    with pytest.raises(StartFailed, match=r"not ready after 0.1 s. Its log ends:\nno room\n$"):
        wait_until(lambda: False, slow, log, 0.1)
    stop(slow)


def test_those_that_are_to_end_are_asked_all_before_any_is_waited_for(tmp_path: Path) -> None:
    def waiting_for(other: str, name: str) -> subprocess.Popen[bytes]:
        end = f"touch {tmp_path}/{name}; until test -e {tmp_path}/{other}; do sleep 0.01; done; exit 0"
        log = tmp_path / f"log {name}"
        made = child(log, f"trap '{end}' TERM; echo ready; while :; do sleep 0.01; done")
        wait_until(lambda: "ready" in log.read_text(), made, log, 60)
        return made

    both = waiting_for("b", "a"), waiting_for("a", "b")
    stop(*both, grace_s=60)
    assert [one.returncode for one in both] == [0, 0]


def test_one_that_heeds_no_signal_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    deaf = child(log, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: "ready" in log.read_text(), deaf, log, 60)
    stop(deaf, grace_s=0.1)
    assert deaf.returncode == -signal.SIGKILL
