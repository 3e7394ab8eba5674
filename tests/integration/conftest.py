"""Fixtures that several files of integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chaos import stand as stands
from tests.chaos.stand import Stand, standing
from tests.receiver import SECRET, Receiver, receiving

from turnout import Client
from turnout_workers import local
from turnout_workers.config import toml_lines
from turnout_workers.config.tables import LimitFields
from turnout_workers.simulator import load

FLEET = """
output_tokens = 12
[providers.sim]
s_per_token = 0.005
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
"""


@pytest.fixture(scope="session", autouse=True)
def _lost_messages_are_soon_missed() -> Iterator[None]:
    """A message that is only late is published twice then, which does no harm. Benchmarks have the product's pace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stands, "LOST_AFTER_S", 0.5)
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Local]:
    """A Redis, a worker process and a simulated fleet without latency, for all tests of a file."""
    folder = tmp_path_factory.mktemp("local")
    scenario = folder / "scenario.toml"
    not_at_once = {"ttft_s", "s_per_token", "jitter", "faults", *LimitFields.model_fields}
    scenario.write_text(toml_lines.dumps(load().model_dump(exclude={"providers": {"__all__": not_at_once}})))
    with local.running(folder, None, scenario) as running, running.workers():
        yield running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stand(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Stand]:
    """A Redis, a worker process and the FLEET of the test file, or else one provider, with a webhook `app` that the
    receiver hears."""
    fleet = getattr(request.module, "FLEET", FLEET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBHOOK_SECRET", SECRET)
        with standing(tmp_path_factory.mktemp("stand"), fleet, concurrency=20) as stand:
            with stand.config.open("a") as config:
                config.write(
                    f'\n[webhooks.app]\nurl = "{receiver.url}"\nsecret_env = "WEBHOOK_SECRET"\nprivate = true\n'
                )
            stand.start_worker()
            yield stand


@pytest.fixture
def client(stand: Stand) -> Iterator[Client]:
    with Client(stand.redis.url) as client:
        yield client
