"""What waits on disk sealed is kept for its key, and put aside if no key can open it."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from turnout.ledger import Coalescer, Keyring, Keys, Ledger, NewJob, run, write_result
from turnout.request import InferenceRequest, InferenceResponse
from turnout.result import JobResult, JobStatus
from turnout_workers.background.spool import Spool, SpoolDrain
from turnout_workers.config import Settings, Source
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.tables import Config
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.redis_store import RedisFleetStore

OLD, NEW = (
    Keyring.of({"TURNOUT_PAYLOAD_KEYS": f"{name}:{base64.b64encode(bytes([n] * 32)).decode()}"})
    for n, name in enumerate(("old", "new"), 1)
)
URL = "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(("keyring", "job_id", "left"), [(NEW, "a", ".json"), (OLD, "b", ".refused")])
async def test_what_cannot_be_opened(tmp_path: Path, keyring: Keyring, job_id: str, left: str) -> None:
    never: Any = None
    spool = Spool(tmp_path, URL, "turnout")
    answer = InferenceResponse(text="yes", provider="p", model_requested="m", model_served="m")
    sealed = json.loads(write_result(JobResult(id="a", status=JobStatus.SUCCEEDED, response=answer), OLD))
    spool.keep({"job": job_id, "result": sealed})
    (path,) = spool
    drain = SpoolDrain(spool, Ledger(keyring=keyring), never, MemoryFleetStore(lambda: 0.0), never)
    await drain._settle(path)
    assert [file.suffix for file in tmp_path.iterdir()] == [left]


@pytest.mark.parametrize("other", [{}, [], 3, {"job": "a", "result": "yes"}, {"job": "a", "result": {"id": 1}}])
async def test_what_another_release_has_kept_is_put_aside_and_holds_nothing_up(tmp_path: Path, other: Any) -> None:
    never: Any = None
    spool = Spool(tmp_path, URL, "turnout")
    (path := tmp_path / "0.json").write_text(json.dumps(other))
    await SpoolDrain(spool, Ledger(), never, MemoryFleetStore(lambda: 0.0), never)._settle(path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".refused"]


def test_a_folder_that_takes_nothing_is_noticed_before_it_is_needed(tmp_path: Path) -> None:
    assert Spool(tmp_path / "made/for/it", URL, "turnout").trouble() is None
    (tmp_path / "file").touch()
    assert isinstance(Spool(tmp_path / "file" / "spool", URL, "turnout").trouble(), OSError)


def test_of_what_a_full_disk_did_not_take_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Spool(tmp_path, URL, "turnout").keep({"job": "a"})
    assert not list(tmp_path.iterdir())


def test_what_is_no_settlement_is_put_aside_and_holds_nothing_up(tmp_path: Path) -> None:
    never: Any = None
    spool = Spool(tmp_path, URL, "turnout")
    (tmp_path / "0.json").write_text("half of")
    spool.keep({})
    asyncio.run(SpoolDrain(spool, Ledger(), never, MemoryFleetStore(lambda: 0.0), never).settle_all())
    assert [file.suffix for file in tmp_path.iterdir()] == [".refused"] * 2
    assert (tmp_path / "0.refused").read_text() == "half of"


@pytest.mark.parametrize(
    ("fleet", "there", "left"),
    [("own", True, []), ("own", False, [".refused"]), ("elsewhere:6379/0 turnout", True, [".json"]), (None, True, [])],
)
async def test_what_is_paid_for_is_taken_by_its_own_fleet_and_kept_where_its_job_is_gone(
    fleet: str | None, there: bool, left: list[str], redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    edited = Config(redis_url="redis://elsewhere")  # which this worker follows once it is restarted
    ledger, settings = Ledger(Keys()), Settings(edited, {}, {}, "1", Source("the test"))
    if there:
        run(flushed, [ledger.enqueue(NewJob.of("a", InferenceRequest(prompt="A?"))), ledger.claim("a", "other", 60)])
    answer = InferenceResponse(text="yes", provider="p", model_requested="m", model_served="m")
    result = json.loads(write_result(JobResult(id="a", status=JobStatus.SUCCEEDED, response=answer), Keyring()))
    named = {} if fleet == "own" else {"fleet": fleet}
    spool = Spool(tmp_path, redis_url, "turnout")
    spool.keep({**named, "job": "a", "token": 1, "batch": None, "accounts": [], "result": result})
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        store = RedisFleetStore(send := Coalescer(client), ledger.keys)
        await SpoolDrain(spool, ledger, send, store, CurrentConfig(settings)).settle_all()
    assert [file.suffix for file in tmp_path.iterdir()] == left
    assert (run(flushed, [ledger.result("a")])[0] is not None) == (not left)
