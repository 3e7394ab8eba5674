"""A real worker's metrics, read by Prometheus' own parser."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.chaos.stand import Stand, standing

from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest
from turnout_workers import process

COMPOSE = Path(__file__).parents[2] / "compose"
FLEET = """
output_tokens = 8
[providers.sim-weak]
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.1 } }
faults = [{ kind = "error", status = 504, for_requests = 2 }]
[providers.sim-good]
models."llama-3.3-70b" = { price = { input = 5.0, output = 5.0 } }
"""
Series = dict[tuple[str, ...], float]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = process.free_port()
    monkeypatch.setenv("TURNOUT_METRICS_PORT", str(port))
    return port


@pytest.fixture
def stand(tmp_path: Path, port: int) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=20) as stand:
        with stand.config.open("a") as config:
            config.write("\n[ceilings.total]\nper_day_usd = 2.0\n")
        stand.start_worker()
        yield stand


def scraped(port: int) -> Series:
    """By name and label values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(one.name, *(one.labels[label] for label in sorted(one.labels))): one.value for one in samples}


def test_what_became_of_jobs_calls_and_money_is_counted(stand: Stand, port: int) -> None:
    ids = [str(number) for number in range(20)]
    stand.submit(ids, constraints={"strategy": "cost"})
    stand.until(lambda: stand.settled() == 20, 30)
    told = scraped(port)
    assert told["turnout_jobs_total", "standard", "succeeded"] == 20
    assert told["turnout_queue_wait_seconds_count", "standard"] == 20
    assert told["turnout_calls_total", "sim-weak/llama-3.3-70b", "timed_out"] == 2
    moves = {name: value for name, value in told.items() if name[0] == "turnout_failovers_total"}
    assert moves == {("turnout_failovers_total", "timed_out", "sim-weak", "sim-good"): 2}
    spent = sum(value for name, value in told.items() if name[0] == "turnout_spend_usd_total")
    assert round(spent * 1e6) == stand.money()["total|spent"] == stand.oracle()["billed_microusd"]
    assert told["turnout_fleet_money_usd", "spent"] == pytest.approx(spent)
    assert told["turnout_fleet_circuit", "sim-good/llama-3.3-70b", "closed"] == 1
    assert told["turnout_fleet_backlog_jobs", "standard"] == 0
    assert told["turnout_fleet_ceiling_used_ratio", "total", "day"] == pytest.approx(
        (stand.money()["total|spent"] + stand.money()["total|unsure"]) / 2e6
    )


def test_a_flood_of_ten_thousand_models_and_a_thousand_tenants_makes_no_new_series(stand: Stand, port: int) -> None:
    def job(n: int) -> NewJob:
        models = tuple(f"model-{n}-{m}" for m in range(10))
        return NewJob.of(f"a{n}", InferenceRequest(prompt="?", model=models, constraints={"tenant": f"tenant-{n}"}))

    def submit(numbers: range) -> None:
        run(stand.client, [stand.ledger.enqueue(job(n)) for n in numbers])

    submit(range(2))
    stand.until(lambda: stand.settled() == 2, 30)
    before = set(scraped(port))
    submit(range(2, 1000))
    stand.until(lambda: stand.settled() == 1000, 60)
    assert set(scraped(port)) == before


def test_metrics_outlive_a_redis_that_is_away(stand: Stand, port: int) -> None:
    stand.redis.kill()
    told = scraped(port)
    assert ("turnout_worker_jobs",) in told
    assert not any(name[0] == "turnout_fleet_backlog_jobs" for name in told)


def test_dashboard_and_alerts_name_only_series_that_there_are(stand: Stand, port: int) -> None:
    stand.submit(["a", "b", "c"])
    stand.until(lambda: stand.settled() == 3, 30)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    there: set[str] = set()
    for family in families:
        there |= {family.name, *(sample.name for sample in family.samples)}
        if family.type == "counter":
            there.add(f"{family.name}_total")  # told from the first event on
        if family.type == "histogram":
            there.add(f"{family.name}_bucket")
    for file in ("prometheus/alerts.yml", "grafana/dashboards/turnout.json"):
        named = set(re.findall(r"turnout_[a-z_]+[a-z]\b", (COMPOSE / file).read_text()))
        assert len(named) > 5
        assert named <= there
