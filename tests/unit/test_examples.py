"""The examples are what a newcomer runs first, so each of their lines must be what Turnout takes."""

from __future__ import annotations

import json
from pathlib import Path

from turnout.request import InferenceRequest
from turnout_workers.simulator import load

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_line_of_the_example_is_a_request() -> None:
    lines = [json.loads(line) for line in (EXAMPLES / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) >= 200
    for line in lines:
        InferenceRequest.model_validate({name: value for name, value in line.items() if name != "id"})


def test_every_model_named_in_the_examples_is_one_of_the_simulated_fleet() -> None:
    providers = load().providers.values()
    served = {name for p in providers for ours, m in p.models.items() for name in (ours, *m.aliases)}
    for name in ("prompts.jsonl", "openai_batch.jsonl"):
        for text in (EXAMPLES / name).read_text("utf-8").splitlines():
            line = json.loads(text)
            model = line.get("body", line).get("model") or []
            assert {model} <= served if isinstance(model, str) else set(model) <= served


def test_every_scenario_in_the_examples_can_be_played() -> None:
    scenarios = list(EXAMPLES.glob("*.toml"))
    assert len(scenarios) >= 3
    for path in scenarios:
        assert load(path).providers
