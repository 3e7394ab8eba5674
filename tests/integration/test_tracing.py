"""One trace from a web request through the queue and a real worker to the provider, received by OTLP over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from tests.chaos.stand import standing

from turnout import Client

FLEET = """
output_tokens = 8
[providers.sim-weak]
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
faults = [{ kind = "error", status = 504, for_requests = 1 }]
[providers.sim-good]
models."llama-3.3-70b" = { input_usd_per_mtok = 5.0, output_usd_per_mtok = 5.0 }
"""
SECRET = "xyzzy-plugh-4711"


class Receiver(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiving)
        self.spans: list[Span] = []
        self.raw = b""


class Receiving(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    yield server
    server.shutdown()
    serving.join()
    server.server_close()


def test_one_trace_from_submission_to_settlement(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{receiver.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("TURNOUT_LOG_FORMAT", "json")
    tracer = TracerProvider().get_tracer("web")
    with standing(tmp_path, FLEET, concurrency=4, lease_s=30.0) as stand, Client(stand.redis.url) as client:
        worker = stand.start_worker()
        with tracer.start_as_current_span("POST /summaries") as request:
            job = client.submit(SECRET, model="llama-3.3-70b", constraints={"strategy": "cost"})
        answer, ended = job.wait(30), job.result()
        # Celery's thread and the exporter's have their own pace: the last span of the job comes when its hold ends.
        stand.until(lambda: sum(span.name == "turnout.job" for span in receiver.spans) == 2, 60)
        lines = [json.loads(line) for line in worker.said.splitlines()]
    trace_id = f"{request.get_span_context().trace_id:032x}"
    assert {span.trace_id.hex() for span in receiver.spans} == {trace_id}
    calls = [span for span in receiver.spans if span.kind == Span.SPAN_KIND_CLIENT]
    told = [{one.key: one.value for one in span.attributes} for span in calls]
    assert [one["gen_ai.provider.name"].string_value for one in told] == ["sim-weak", "sim-good"]
    assert told[0]["error.type"].string_value == "timed_out"
    assert told[1]["gen_ai.usage.output_tokens"].int_value == answer.usage.output_tokens
    names = sorted(span.name for span in receiver.spans if span.kind != Span.SPAN_KIND_CLIENT)
    assert names == [*["turnout.decide"] * 2, *["turnout.job"] * 2, *["turnout.queue"] * 2, "turnout.settle"]
    decided = [span for span in receiver.spans if span.name == "turnout.decide"]
    excluded = [{one.key: one.value.int_value for one in span.attributes}["turnout.excluded"] for span in decided]
    assert excluded == [0, 1]
    assert {line["trace_id"] for line in lines if line.get("job") == job.id} == {trace_id}
    of_provider = [(line["attempt"], line["provider"], line["event"]) for line in lines if "provider" in line]
    assert of_provider == [
        (1, "sim-weak", "failed_over: sim-weak/llama-3.3-70b failed (timed_out); moving to another endpoint"),
        (2, "sim-good", f"succeeded: {ended.summary()}"),
    ]
    assert SECRET.encode() not in receiver.raw
    assert answer.text.encode() not in receiver.raw
