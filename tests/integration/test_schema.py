"""A job that asks for JSON of a schema, against a provider whose answers fail it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.stand import standing

from turnout import Client, Failed

FLEET = """
output_tokens = 30
[providers.sim]
models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
"""


def test_an_answer_off_its_schema_is_asked_for_again_so_often_and_each_is_paid_for(tmp_path: Path) -> None:
    within = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}
    out_of_reach = {**within, "properties": {"n": {"type": "string", "pattern": "^never said$"}}}
    with standing(tmp_path, FLEET, concurrency=5) as stand, Client(stand.redis.url) as client:
        stand.start_worker()

        def ask(schema: object, repairs: int) -> str:
            wanted = {"type": "json_schema", "json_schema": schema, "max_repairs": repairs}
            return client.submit("How many?", model="llama-3.3-70b", response_format=wanted).id

        client.job(ask(within, 0)).wait(20)
        before = stand.oracle()["billed_microusd"]
        job = client.job(ask(out_of_reach, 2))
        with pytest.raises(Failed, match="the answer fails its schema: at /…: pattern is not met"):
            job.wait(60)
        result = job.result()
        assert result is not None
        assert [attempt.failure for attempt in result.attempts] == ["off_schema"] * 3
        assert result.cost_microusd == stand.oracle()["billed_microusd"] - before
        assert result.unsure_microusd == 0
