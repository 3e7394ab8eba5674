"""The conformance suite upon the built-in connectors, and upon the example that docs/connectors.md gives."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from turnout_workers.providers import KINDS, Http, ProviderConfig, Secret, build
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.providers.conformance import ConnectorConformance
from turnout_workers.providers.connector import Connector
from turnout_workers.routing.fleet import Endpoint, Price

GUIDE = Path(__file__).parents[2] / "docs" / "connectors.md"
EXAMPLE = "\n\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))


class Built(ConnectorConformance):
    kind: str

    def connector(self, base_url: str, key: str, http: Http) -> CloudProviderBase:
        endpoint = Endpoint(self.kind, "m", "m", price=Price(1.0, 3.0))
        return build(ProviderConfig(self.kind, self.kind, base_url, (endpoint,), self.kind, Secret(key)), http)


class TestOpenAI(Built):
    kind = "openai"
    answer: ClassVar = {
        "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    events: ClassVar = (
        {"choices": [{"delta": {"content": "Hel"}}]},
        {"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]},
    )


class TestAnthropic(Built):
    kind = "anthropic"
    answer: ClassVar = {"content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn"}
    events: ClassVar = (
        {"type": "message_start", "message": {}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    )


class TestGemini(Built):
    kind = "gemini"
    answer: ClassVar = {"candidates": [{"content": {"parts": [{"text": "Hello"}]}, "finishReason": "STOP"}]}
    events: ClassVar = (
        {"candidates": [{"content": {"parts": [{"text": "Hel"}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "lo"}]}, "finishReason": "STOP"}]},
    )


_documented: dict[str, object] = {"__name__": "acme_turnout"}
exec(compile(EXAMPLE, GUIDE.name, "exec"), _documented)
TestDocumentedExample = _documented["TestAcme"]


def test_a_connector_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_turnout.py").write_text(EXAMPLE)
    about = tmp_path / "acme_turnout-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-turnout\nVersion: 1.0\n")
    registered = re.search(r"```toml\n\[project.entry-points.\"(.*?)\"\]\nacme = \"(.*?)\"", GUIDE.read_text())
    assert registered
    (about / "entry_points.txt").write_text(f"[{registered[1]}]\nacme = {registered[2]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        connector = build(ProviderConfig("a", "acme", "http://127.0.0.1:9", (), api_key=Secret("k")), Http())
        assert type(connector).__name__ == "AcmeConnector"
        assert isinstance(connector, Connector)
        assert connector.headers(Endpoint("a", "m", "m")) == {"x-acme-key": "k"}
        assert connector.health_path == "/health"
    finally:
        sys.modules.pop("acme_turnout", None)


def test_an_unknown_kind_is_named_with_those_that_exist() -> None:
    with pytest.raises(LookupError, match=f"'nonsense'; there are {', '.join(sorted(KINDS))}"):
        build(ProviderConfig("a", "nonsense", "http://127.0.0.1:9", ()), Http())
