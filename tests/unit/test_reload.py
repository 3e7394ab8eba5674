"""A running worker follows its configuration, and keeps the one it has while the new one is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from turnout_workers import runtime
from turnout_workers.background.reload import Reload
from turnout_workers.config import Settings, Source, load
from turnout_workers.config.current_config import CurrentConfig

GOOD = """
[providers.office]
dialect = "vllm"
base_url = "http://127.0.0.1:1/v1"
models = ["llama-3.3-70b"]
api_key_file = "KEY"
"""


class Worker:
    def __init__(self, folder: Path) -> None:
        self.file, self.key = folder / "turnout.toml", folder / "key"
        self.key.write_text("first")
        self.write(GOOD)
        self.current = CurrentConfig(load(Source(str(self.file)), {}))
        self.now, self.taken_over = 0.0, 0
        self.reload = Reload(self.current, self.use, {}, lambda: self.now)

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("KEY", str(self.key)))

    def use(self, settings: Settings) -> None:
        if "twice" in settings.config.providers:
            raise ValueError("endpoint twice/x is there twice")
        self.current.settings = settings
        self.taken_over += 1

    @property
    def uses(self) -> Settings:
        return self.current.settings

    async def follows(self) -> Settings:
        for _ in range(2):
            await self.reload.check()
        return self.uses


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def test_no_variable_of_the_environment_is_shown_when_it_is_printed(worker: Worker) -> None:
    shown = repr(Reload(worker.current, worker.use, {"ACME_KEY": "sk-secret"}))
    assert "sk-secret" not in shown


async def test_a_change_is_taken_over_once_it_was_read_twice(worker: Worker) -> None:
    before = worker.uses
    worker.write(GOOD + "concurrency = 3")
    await worker.reload.check()
    assert worker.uses is before
    await worker.reload.check()
    assert worker.uses.config.providers["office"].concurrency == 3


async def test_a_change_is_told_to_other_workers_as_soon_as_it_is_followed(worker: Worker) -> None:
    told: list[str] = []

    class Telling(runtime.Worker):
        async def _show_life(self) -> None:
            told.append(self.current.settings.version)

    telling = Telling(worker.uses)
    telling.current = worker.current
    for text in (GOOD, GOOD + "concurrency = 3"):
        worker.write(text)
        for _ in range(3):
            await telling._follow(worker.reload)
    assert told == [worker.uses.version]


async def test_what_did_not_change_is_not_taken_over_again(worker: Worker) -> None:
    before = worker.uses
    worker.write(GOOD)
    await worker.follows()
    assert worker.uses is before


async def test_a_new_key_in_a_key_file_is_a_change(worker: Worker) -> None:
    before = await worker.follows()
    worker.key.write_text("second")
    assert await worker.follows() != before
    assert worker.uses.keys["office"] == ("second",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "concurency = 3", "turnout.toml:7: providers.office.concurency: there is no such field"),
        (GOOD.replace("KEY", "/no/such/file"), "api_key_file /no/such/file can't be read"),
        (GOOD + "[providers.twice]\nbase_url = 'http://x'\nmodels = ['x']", "endpoint twice/x is there twice"),
    ],
)
async def test_a_wrong_one_is_told_once_and_changes_nothing(
    worker: Worker, caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    caplog.set_level(logging.WARNING, "turnout_workers.background.reload")
    before = worker.uses
    worker.write(text)
    for _ in range(3):
        await worker.follows()
    assert worker.uses is before
    (record,) = caplog.records
    assert told in record.getMessage()
    assert "first" not in record.getMessage()
    worker.write(GOOD + "concurrency = 3")
    assert (await worker.follows()).version != before.version


async def test_what_holds_for_a_workers_life_is_said_to_need_a_restart(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "turnout_workers.background.reload")
    worker.write("namespace = 'other'\n[router]\nfailover_cooldown = 5\ndefault_strategy = 'cost'\n" + GOOD)
    await worker.follows()
    (record,) = caplog.records
    assert record.getMessage().endswith("namespace, router")


async def test_a_change_that_is_undone_needs_no_restart(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.write("namespace = 'other'\n" + GOOD)
    await worker.follows()
    caplog.clear()
    worker.write("[router]\ndefault_strategy = 'cost'\n" + GOOD)
    await worker.follows()
    assert "restart" not in caplog.text


async def test_a_file_that_was_not_there_at_first_is_followed(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker.file.unlink()
    worker.current.settings = load(Source("the environment", GOOD.replace("KEY", str(worker.key))), {})
    worker.reload = Reload(worker.current, worker.use, {})
    before = await worker.follows()
    worker.write(GOOD + "concurrency = 3")
    assert (await worker.follows()).config.providers["office"].concurrency == 3
    assert (before.source.where, worker.uses.source.where) == ("the environment", "turnout.toml")


async def test_how_long_results_are_kept_is_followed(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.write("[retention]\nresults_s = 60\n" + GOOD)
    assert (await worker.follows()).config.retention.results_s == 60
    assert "restart" not in caplog.text


async def test_list_prices_are_looked_up_again_each_quarter_of_an_hour(worker: Worker) -> None:
    for now, taken_over in ((0, 0), (899, 0), (900, 1), (1700, 1), (7200, 2)):
        worker.now = now
        await worker.reload.check()
        assert worker.taken_over == taken_over
