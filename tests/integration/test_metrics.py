"""A real worker's metrics, read by Prometheus' own parser."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests import redis_server
from tests.chaos.stand import Stand, standing
from tests.tools import program

from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest
from turnout_workers.local import process

COMPOSE = Path(__file__).parents[2] / "compose"
FLEET = """
output_tokens = 8
[providers.sim-weak]
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
faults = [{ kind = "error", status = 504, for_requests = 2 }]
[providers.sim-good]
models."llama-3.3-70b" = { input_usd_per_mtok = 5.0, output_usd_per_mtok = 5.0 }
"""
Series = dict[tuple[str, ...], float]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with redis_server.bind_free_port() as reserved:
        port: int = reserved.getsockname()[1]
        monkeypatch.setenv("TURNOUT_METRICS_PORT", str(port))
        yield port


@pytest.fixture
def stand(tmp_path: Path, port: int) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=20, lease_s=30.0) as stand:
        with stand.config.open("a") as config:
            config.write("\n[ceilings.total]\nper_day_usd = 2.0\n")
        stand.start_worker()
        yield stand


def scraped(port: int) -> Series:
    """By name and label values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(one.name, *(one.labels[label] for label in sorted(one.labels))): one.value for one in samples}


def once_idle(stand: Stand, port: int) -> Series:
    """What the worker tells when it is done with its jobs, of which it counts each a moment after that is settled; and
    of the fleet, too, which it leaves out while Redis is slow."""
    told: Series = {}

    def is_idle() -> bool:
        told.clear()
        told.update(scraped(port))
        return told["turnout_worker_free_slots",] == 20 and ("turnout_fleet_backlog_jobs", "batch") in told

    stand.until(is_idle, 60)
    return told


def test_what_became_of_jobs_calls_and_money_is_counted(stand: Stand, port: int) -> None:
    ids = [str(number) for number in range(20)]
    stand.submit(ids, constraints={"strategy": "cost"})
    stand.until(lambda: stand.settled() == 20, 60)
    told = once_idle(stand, port)
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
    stand.until(lambda: stand.settled() == 2, 60)
    before = set(once_idle(stand, port))
    submit(range(2, 1000))
    stand.until(lambda: stand.settled() == 1000, 60)
    assert set(once_idle(stand, port)) == before


def test_metrics_outlive_a_redis_that_is_away(stand: Stand, port: int) -> None:
    stand.redis.kill()
    told = scraped(port)
    assert ("turnout_worker_jobs",) in told
    assert not any(name[0] == "turnout_fleet_backlog_jobs" for name in told)


def test_a_worker_that_waits_for_redis_at_its_start_tells_so(tmp_path: Path, port: int) -> None:
    with standing(tmp_path, FLEET) as stand:
        stand.redis.kill()
        worker = stand.start_worker(wait=False)
        stand.until(lambda: "Redis can't be reached" in worker.said, 60)
        assert ("turnout_worker_jobs",) in scraped(port)
        stand.redis.restart()
        stand.until(lambda: ("turnout_fleet_backlog_jobs", "batch") in scraped(port), 60)


def asked_of(prometheus: str, query: str) -> list[dict[str, Any]]:
    """The samples that it answers with; a query that it can't read is an HTTP error."""
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}", timeout=30) as reply:
        found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
        return found


@pytest.fixture
def prometheus(port: int, tmp_path: Path) -> Iterator[str]:
    """The real one, with compose's own configuration; only places and the pace of scrapes are this machine's."""
    text = (COMPOSE / "prometheus/prometheus.yml").read_text()
    settings = yaml.safe_load(text.replace("/etc/prometheus/alerts.yml", str(COMPOSE / "prometheus/alerts.yml")))
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = settings["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    log = tmp_path / "prometheus.log"
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]
    with redis_server.bind_free_port() as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        command = [program("prometheus", "prometheus"), *options, f"--web.listen-address={address}"]
        server = process.start(command, log)
        try:
            process.wait_until(lambda: "Server is ready to receive web requests" in log.read_text(), server, log, 60)
            yield f"http://{address}"
        finally:
            process.stop(server)


def test_prometheus_answers_each_question_of_dashboard_and_alerts(stand: Stand, prometheus: str) -> None:
    """With figures, but for what has not happened: no job was swept, and no alert fires."""
    board = json.loads((COMPOSE / "grafana/dashboards/turnout.json").read_text())
    shown = {target["expr"] for panel in board["panels"] for target in panel["targets"]}
    stand.submit([str(n) for n in range(20)], constraints={"strategy": "cost"})
    stand.until(lambda: stand.settled() == 20, 60)
    idle = {query for query in shown if "turnout_recoveries_total" in query}
    assert len(idle) == 1
    stand.until(lambda: all(asked_of(prometheus, query) for query in shown - idle), 60)
    alerts = yaml.safe_load((COMPOSE / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    # A scrape has a second here, so that one of a busy machine may be missed: what is seen then is over with the next.
    stand.until(lambda: not any(asked_of(prometheus, rule["expr"]) for rule in alerts), 60)
