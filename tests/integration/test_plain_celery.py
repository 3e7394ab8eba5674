"""An app that has only Celery, against a real Turnout worker: its callbacks, chains, groups and chords."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from queue import Queue
from typing import Any
from uuid import UUID

import pytest
from celery import Celery, chain, chord, group, signature
from celery.app.control import Inspect
from celery.canvas import xmap
from celery.contrib.testing.worker import start_worker
from celery.exceptions import NotRegistered, TaskRevokedError
from kombu import Exchange
from kombu import Queue as CeleryQueue
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand

from turnout import Cancelled, Client, Expired, Failed, InferenceRequest
from turnout.ledger import Claimed, NewJob, run
from turnout.request import InferenceResponse, Lane
from turnout.result import JobResult, JobStatus
from turnout_workers.background.spool import Spool
from turnout_workers.celery_app import celery_settings

PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}
FLEET = one_provider(models={"llama-3.3-70b": PRICES, "llama-3.1-8b": PRICES})
LIMIT_S = 60
"""Of what comes at once, but on a machine that is busy."""

called: Queue[tuple[str, Any]] = Queue()
"""What the app's own tasks were called with."""


@pytest.fixture(scope="module")
def app(stand: Stand) -> Iterator[Celery]:
    """The app with an unmodified Celery worker of its own, on its own queue."""
    app = Celery("shop", broker=stand.redis.url, backend=stand.redis.url, set_as_current=False)
    app.conf.update(task_default_queue="shop", worker_hijack_root_logger=False)

    @app.task(name="shop.answered", shared=False)
    def answered(result: dict[str, Any]) -> str:
        called.put(("answered", result["id"]))
        return str(result["response"]["text"])

    @app.task(name="shop.gathered", shared=False)
    def gathered(results: list[dict[str, Any]]) -> list[str]:
        return [one["id"] for one in results if one["status"] == "succeeded"]

    @app.task(name="shop.kept", shared=False)
    def kept(result: dict[str, Any], under: Any) -> Any:
        return [under, result["status"]]

    @app.task(name="shop.rooted", shared=False, bind=True)
    def rooted(task: Any, result: dict[str, Any]) -> Any:
        return [task.request.root_id, task.request.stamps]

    @app.task(name="shop.failed", shared=False)
    def failed(job_id: str) -> None:
        called.put(("failed", job_id))

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=LIMIT_S):
        yield app


def infer(app: Celery, prompt: str = "A?", **fields: Any) -> Any:
    """A signature of the job, by its name alone."""
    request = {"prompt": prompt, "max_output_tokens": 5, **fields}
    return signature("turnout.infer", kwargs={"request": request}, queue="standard", immutable=True, app=app)


def inspect(app: Celery, *numbers: int) -> Inspect:
    """Of the stand's workers, for whose answers it waits for as long as they take."""
    return app.control.inspect([f"w{number}@{socket.gethostname()}" for number in numbers], timeout=LIMIT_S)


def own(app: Celery, name: str) -> Any:
    """A task of the app. It names its queue: Turnout's worker sends it on, and would put it on a lane."""
    return app.signature(name, queue="shop")


NOBODY = {"constraints": {"only": ["nobody"]}}


def test_a_job_that_comes_to_a_lane_by_a_routing_key_of_the_apps_own_is_done(app: Celery, stand: Stand) -> None:
    with Celery("other", broker=stand.redis.url, backend=stand.redis.url, set_as_current=False) as other:
        exchange = Exchange("ai", type="topic")
        other.conf.task_queues = [CeleryQueue("standard", exchange, routing_key="ai.standard")]
        sent = [infer(other).apply_async() for _ in range(3)]
        assert [one.get(timeout=LIMIT_S)["status"] for one in sent] == ["succeeded"] * 3


@pytest.mark.parametrize("queue", Lane)
def test_a_job_is_of_the_lane_by_which_it_came_unless_it_names_one(app: Celery, stand: Stand, queue: Lane) -> None:
    sent = [infer(app, constraints=wish).apply_async(queue=queue) for wish in ({}, {"lane": "batch"})]
    for one in sent:
        one.get(timeout=LIMIT_S)
    known = run(stand.client, [stand.ledger.facts(one.id) for one in sent])
    assert [job and job.lane for job in known] == [queue, Lane.BATCH]


def test_a_job_of_celerys_first_protocol_is_done(app: Celery, stand: Stand) -> None:
    with Celery("older", broker=stand.redis.url, backend=stand.redis.url, set_as_current=False) as older:
        older.conf.task_protocol = 1
        sent = infer(older).apply_async(link=own(app, "shop.answered"))
        assert sent.get(timeout=LIMIT_S)["status"] == "succeeded"
    assert called.get(timeout=LIMIT_S) == ("answered", sent.id)


def test_a_link_is_called_with_the_result(app: Celery) -> None:
    sent = infer(app).apply_async(link=own(app, "shop.answered"))
    assert called.get(timeout=LIMIT_S) == ("answered", sent.id)
    assert sent.get(timeout=LIMIT_S)["status"] == "succeeded"


@pytest.mark.parametrize("countdown", [0, 1])
@pytest.mark.parametrize("under", [UUID(int=7), datetime.now(UTC), date(2026, 1, 2), Decimal("1.5"), b"key"])
def test_what_follows_is_called_with_all_types_that_celery_can_send(app: Celery, under: Any, countdown: int) -> None:
    later = {"expires": datetime.now(UTC) + timedelta(seconds=LIMIT_S)}
    follows = app.signature("shop.kept", args=(under,), queue="shop").set(**later)
    sent = chain(infer(app).set(countdown=countdown), follows).apply_async()
    assert sent.get(timeout=LIMIT_S) == [under, "succeeded"]


def test_labels_come_back_with_the_result_also_of_a_failure(app: Celery) -> None:
    labels = {"metadata": {"ticket": "7"}}
    assert infer(app, **labels).apply_async().get(timeout=LIMIT_S)["metadata"] == {"ticket": "7"}
    with pytest.raises(Failed) as failed:
        infer(app, **labels, **NOBODY).apply_async().get(timeout=LIMIT_S)
    assert failed.value.result.metadata == {"ticket": "7"}


def test_a_link_error_is_called_and_the_result_raises(app: Celery) -> None:
    sent = infer(app, **NOBODY).apply_async(link_error=own(app, "shop.failed"))
    assert called.get(timeout=LIMIT_S) == ("failed", sent.id)
    with pytest.raises(Failed, match="only nobody may be used"):
        sent.get(timeout=LIMIT_S)


def test_a_request_that_is_not_accepted_fails_with_the_reason(app: Celery, stand: Stand) -> None:
    late = infer(app, constraints={"deadline": "2020-01-31T12:00:00Z"}).apply_async()
    with pytest.raises(Failed, match="expired: the job was not accepted"):
        late.get(timeout=LIMIT_S)
    record = json.loads(stand.client.get(stand.ledger.keys.result(late.id)) or b"")
    (told,) = record["result"]["exc_message"]
    assert told.keys() == {"id", "status", "error"}, "and nothing that has its usual value"


def test_a_request_that_no_worker_could_read_again_never_is_a_job(app: Celery, stand: Stand) -> None:
    deep: Any = 1
    for _ in range(220):
        deep = {"a": deep}
    sent = infer(app, extras={"sim": {"x": deep}}).apply_async()
    with pytest.raises(Failed, match="invalid_request: the request is nested so deeply"):
        sent.get(timeout=LIMIT_S)
    assert run(stand.client, [stand.ledger.facts(sent.id)]) == [None]


def test_a_job_that_expires_while_it_is_parked_calls_its_link_error(app: Celery) -> None:
    late = infer(app, constraints={"deadline_s": 0.5})
    sent = late.apply_async(countdown=LIMIT_S, link_error=own(app, "shop.failed"))
    assert called.get(timeout=LIMIT_S) == ("failed", sent.id)
    with pytest.raises(Expired):
        sent.get(timeout=LIMIT_S)


def test_so_does_one_that_expires_before_its_message_has_come(app: Celery, stand: Stand) -> None:
    late = infer(app, constraints={"deadline_s": 0.001, "lane": "standard"})
    job = NewJob.of("expires-queued", InferenceRequest.model_validate(late.kwargs["request"]), publish=False)
    run(stand.client, [stand.ledger.enqueue(job)])
    stand.until(lambda: stand.outcomes([job.id]) == {"expired": 1}, LIMIT_S)
    late.apply_async(task_id=job.id, link_error=own(app, "shop.failed"))
    assert called.get(timeout=LIMIT_S) == ("failed", job.id)


def test_a_job_whose_answer_was_settled_from_a_disk_calls_its_link(app: Celery, stand: Stand) -> None:
    follows = own(app, "shop.answered").set(task_id="follows")
    embed = json.dumps({"callbacks": [follows]})
    job = NewJob.of("on-disk", InferenceRequest(prompt="A?"), embed=embed, publish=False)
    _, claim = run(stand.client, [stand.ledger.enqueue(job), stand.ledger.claim(job.id, "gone", LIMIT_S)])
    assert isinstance(claim, Claimed)
    answer = InferenceResponse(provider="sim", model_requested="m", model_served="m", text="from the disk")
    result = JobResult(id=job.id, status=JobStatus.SUCCEEDED, response=answer).model_dump(mode="json")
    kept = {"job": job.id, "token": claim.token, "batch": None, "accounts": [], "result": result}
    Spool(stand.folder / "spool", stand.redis.url, "turnout").keep(kept)
    assert called.get(timeout=LIMIT_S) == ("answered", job.id)
    assert app.AsyncResult("follows").get(timeout=LIMIT_S) == "from the disk"


def test_a_chain_hands_the_result_on(app: Celery) -> None:
    text = chain(infer(app), own(app, "shop.answered")).apply_async().get(timeout=LIMIT_S)
    called.get(timeout=LIMIT_S)
    assert text.startswith("[simulated by")


def test_a_chain_ends_at_a_job_that_fails(app: Celery) -> None:
    """And whoever waits for its end is told why."""
    last = chain(infer(app, **NOBODY), own(app, "shop.answered"), own(app, "shop.gathered")).apply_async()
    for result in (last, last.parent, last.parent.parent):
        with pytest.raises(Failed, match="only nobody may be used") as failed:
            result.get(timeout=LIMIT_S)
        assert failed.value.result.id == last.parent.parent.id
    assert called.empty()


def test_so_does_one_whose_end_is_a_chord(app: Celery) -> None:
    steps = infer(app, **NOBODY), group(own(app, "shop.answered"), own(app, "shop.answered")), own(app, "shop.gathered")
    with pytest.raises(Failed, match="only nobody may be used"):
        chain(*steps).apply_async().get(timeout=LIMIT_S)


def test_a_group_gives_each_result_in_its_place(app: Celery) -> None:
    sent = group(infer(app, f"Question {n}?") for n in range(5)).apply_async()
    results = sent.get(timeout=LIMIT_S)
    assert [one["id"] for one in results] == [child.id for child in sent.children]


def test_a_chord_gathers_all_results(app: Celery) -> None:
    sent = chord([infer(app, f"Question {n}?") for n in range(3)], own(app, "shop.gathered")).apply_async()
    assert sent.get(timeout=LIMIT_S) == [child.id for child in sent.parent.children]


def test_a_chord_counts_jobs_that_have_failed_over_were_parked_or_are_for_later(app: Celery, stand: Stand) -> None:
    stand.fail("sim", kind="error", status=503, for_requests=2)
    sent = chord([infer(app), infer(app).set(countdown=1)], own(app, "shop.gathered")).apply_async()
    ids = [child.id for child in sent.parent.children]
    assert sent.get(timeout=LIMIT_S) == ids
    first, later = ({event["event"] for event in run(stand.client, [stand.ledger.story(id)])[0]} for id in ids)
    assert {"failed_over", "deferred"} <= first
    assert "deferred" in later


def test_a_cancelled_job_is_a_revoked_task(app: Celery, stand: Stand) -> None:
    stand.fail("sim", kind="hang", for_requests=1)
    sent = infer(app, "Wait.").apply_async()
    with Client(stand.redis.url) as client:
        job = client.job(sent.id)
        stand.until(lambda: stand.outcomes([sent.id]) == {"calling": 1}, LIMIT_S)
        (((shown,),),) = [inspect(app, 1).active().values()]
        assert (shown["id"], shown["args"], shown["kwargs"]) == (sent.id, ["standard · sent by Celery"], {})
        assert job.cancel()
    with pytest.raises(Cancelled):
        sent.get(timeout=LIMIT_S)
    assert sent.state == "REVOKED"
    infer(app).apply_async().get(timeout=LIMIT_S)
    assert f"[{sent.id}] cancelled because it was revoked" not in stand.workers[0].said


def test_a_revoked_job_is_cancelled_wherever_it_waits_and_runs_when_it_is_replayed(app: Celery, stand: Stand) -> None:
    def all_are(state: str, ids: list[str]) -> None:
        stand.until(lambda: stand.outcomes(ids) == {state: len(ids)}, LIMIT_S)

    other = stand.start_worker()
    workers = inspect(app, 1, 2)
    for command, options in (("revoke", {}), ("terminate", {"signal": "SIGTERM"})):
        ids = [f"{command}-{n}" for n in range(8)]
        jobs = [NewJob.of(job_id, InferenceRequest(prompt="A?"), publish=False) for job_id in ids]
        run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
        app.control.broadcast(command, arguments={"task_id": ids, **options}, reply=True)
        all_are("cancelled", ids)
        stand.until(lambda: list((workers.revoked() or {}).values()) == [[], []], LIMIT_S)
        run(stand.client, [stand.ledger.replay(job_id) for job_id in ids])
        all_are("succeeded", ids)
    stand.stop_worker(other)


def test_a_revoked_task_is_a_cancelled_job(app: Celery, stand: Stand) -> None:
    """As Flower's buttons and Celery's commands do it: what waits, what a message alone has, what is called for."""
    ours = [f"w1@{socket.gethostname()}"]  # the shop's own worker, a stock one, would write a record of its own
    for job_id in ("waits", "in-a-message"):
        assert app.control.revoke(job_id, reply=True, destination=ours, timeout=LIMIT_S)
    stand.submit(["waits"])
    stand.fail("sim", kind="hang", for_requests=1)
    called = infer(app, "Wait.").apply_async()
    stand.until(lambda: stand.outcomes([called.id]) == {"calling": 1}, LIMIT_S)
    app.control.revoke(called.id, terminate=True, destination=ours)
    sent = infer(app, "A?").apply_async(task_id="in-a-message")
    for job_id in ("waits", called.id):
        with Client(stand.redis.url) as client, pytest.raises(Cancelled):
            client.job(job_id).wait(LIMIT_S)
    with pytest.raises(Cancelled):
        called.get(timeout=LIMIT_S)
    with pytest.raises((Cancelled, TaskRevokedError)):  # Celery's until the message comes, for nobody knows the job
        sent.get(timeout=LIMIT_S)
    stand.until(lambda: isinstance(app.AsyncResult(sent.id).result, Cancelled), LIMIT_S)


@pytest.mark.parametrize("countdown", [0, 1])
def test_what_follows_has_the_root_and_the_stamps_of_its_workflow(app: Celery, countdown: int) -> None:
    steps = infer(app), infer(app).set(countdown=countdown), own(app, "shop.rooted")
    (workflow := chain(*steps)).stamp(tenant="acme")
    sent = workflow.apply_async()
    root = sent.parent.parent.id
    assert sent.get(timeout=LIMIT_S) == [root, {"tenant": "acme"}]


def test_a_job_for_later_is_revoked_by_its_stamp(app: Celery, stand: Stand) -> None:
    (later := infer(app).set(countdown=2)).stamp(tenant="revoked")
    sent = later.apply_async()
    stand.until(lambda: stand.outcomes([sent.id]) == {"delayed": 1}, LIMIT_S)
    ours = [f"w1@{socket.gethostname()}"]
    app.control.revoke_by_stamped_headers({"tenant": ["revoked"]}, destination=ours)
    with pytest.raises(Cancelled):
        sent.get(timeout=LIMIT_S)


def test_what_would_do_nothing_is_refused(app: Celery) -> None:
    ours = {"reply": True, "timeout": LIMIT_S, "limit": 1, "destination": [f"w1@{socket.gethostname()}"]}
    for told in (
        app.control.rate_limit("turnout.infer", "1/m", **ours),
        app.control.time_limit("turnout.infer", soft=1, hard=2, **ours),
    ):
        assert "turnout.toml" in str(told)
        assert "ok" not in str(told)
    mapped = xmap(app.signature("turnout.infer"), ["A?", "B?"], app=app).apply_async(queue="standard")
    with pytest.raises(RuntimeError, match="send a group of them"):
        mapped.get(timeout=LIMIT_S)


def test_a_pool_that_is_made_larger_or_smaller_tells_its_slots(app: Celery, stand: Stand) -> None:
    def slots() -> set[int]:
        return {int(sign.split()[-1]) for sign in stand.client.zrange(stand.ledger.keys.workers, 0, -1)} - {0}

    (before,) = slots()
    app.control.pool_grow(3)
    stand.until(lambda: slots() == {before + 3}, LIMIT_S)
    app.control.pool_shrink(3)
    stand.until(lambda: slots() == {before}, LIMIT_S)


def test_what_a_message_alone_has_stays_revoked_for_a_worker_that_starts_later(app: Celery, stand: Stand) -> None:
    stand.stop_worker(stand.workers[0])
    sent = infer(app).apply_async(task_id="revoked-before", link_error=own(app, "shop.failed"))
    app.backend.mark_as_revoked(sent.id)  # as any worker does whom the order has reached
    stand.start_worker()
    stand.until(lambda: isinstance(app.AsyncResult(sent.id).result, Cancelled), LIMIT_S)
    assert stand.outcomes([sent.id]) == {"cancelled": 1}
    infer(app).apply_async().get(timeout=LIMIT_S)
    assert called.empty(), "nothing follows from a revoked task"


def test_another_job_under_a_used_id_fails_and_leaves_the_answer_alone(app: Celery) -> None:
    first = infer(app).apply_async().get(timeout=LIMIT_S)
    infer(app, "B?").apply_async(task_id=first["id"], link_error=own(app, "shop.failed"))
    assert called.get(timeout=LIMIT_S) == ("failed", first["id"])
    assert app.AsyncResult(first["id"]).result == first


def message(body: str, task_id: Any = "a") -> str:
    """One for `turnout.infer`."""
    said = {"body": body, "content-type": "application/json", "content-encoding": "utf-8"}
    properties = {"delivery_tag": "1", "delivery_info": {}, "body_encoding": None}
    return json.dumps({**said, "headers": {"task": "turnout.infer", "id": task_id}, "properties": properties})


GARBAGE = (
    *("garbage", "[]", "{}", '{"properties": {}}', message("[[], {}, {}]", ["a"])),
    *map(message, ("", "[]", "[1, 2, 3]", "[[], {}, []]")),
)


def test_what_is_no_message_ends_no_worker_and_takes_no_other_with_it(app: Celery, stand: Stand) -> None:
    stand.client.lpush("standard", *GARBAGE * 5)
    jobs = [infer(app).apply_async() for _ in range(5)]
    stand.client.lpush("standard", *GARBAGE)
    assert [job.get(timeout=LIMIT_S)["status"] for job in jobs] == ["succeeded"] * 5
    assert infer(app).apply_async().get(timeout=LIMIT_S)["status"] == "succeeded"
    assert stand.workers[0].poll() is None


@pytest.mark.parametrize("serializer", ["pickle", "yaml"])
def test_who_sends_no_json_is_told_so_and_what_was_asked_stays_out_of_the_log(
    app: Celery, stand: Stand, serializer: str
) -> None:
    worker = stand.workers[0]
    logged = worker.said.count("(not shown)")
    sent = infer(app, "canary-xyzzy").apply_async(serializer=serializer)
    with pytest.raises(Failed, match="serializer='json'"):
        sent.get(timeout=LIMIT_S)
    first = infer(app).apply_async().get(timeout=LIMIT_S)
    infer(app).apply_async(serializer=serializer, task_id=first["id"])
    other = app.send_task("turnout.infre", ["canary-xyzzy"], {"prompt": "canary-xyzzy"}, queue="standard")
    with pytest.raises(NotRegistered):
        other.get(timeout=LIMIT_S)
    stand.client.lpush("standard", old_message('{"task": "turnout.infre", "id": "a", "args": ["canary-xyzzy"]}'))
    stand.client.lpush("standard", old_message('["canary-xyzzy"]'), old_message("canary-xyzzy"))
    stand.until(lambda: worker.said.count("(not shown)") == logged + 6, LIMIT_S)
    assert "canary-xyzzy" not in worker.said
    assert app.AsyncResult(first["id"]).result == first


def old_message(body: str) -> str:
    """One of Celery's first protocol, or of none."""
    said = {"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": {}}
    return json.dumps({**said, "properties": {"delivery_tag": "1", "delivery_info": {}, "body_encoding": None}})


def test_a_message_that_is_put_back_is_there_again(app: Celery, stand: Stand) -> None:
    """As Celery does with one that comes when the worker has ceased to listen."""
    with Celery(set_as_current=False, **celery_settings(stand.redis.url)).connection_for_read() as connection:
        queue = connection.SimpleQueue("put-back")
        queue.put({"say": "first"})
        queue.put({"say": "second"})
        queue.get(timeout=LIMIT_S).reject(requeue=True)
        assert [queue.get(timeout=LIMIT_S).payload["say"] for _ in range(2)] == ["first", "second"]


def test_what_a_worker_had_fetched_and_not_begun_is_the_next_again_when_it_stops(app: Celery, stand: Stand) -> None:
    def connection() -> Any:
        return Celery(set_as_current=False, **celery_settings(stand.redis.url)).connection_for_read()

    said = ["first", "second", "third"]
    with connection() as stopping:
        queue = stopping.SimpleQueue("fetched")
        for word in said:
            queue.put(word)
        for _ in range(2):
            queue.get(timeout=LIMIT_S)
    with connection() as other:
        queue = other.SimpleQueue("fetched")
        assert [queue.get(timeout=LIMIT_S).payload for _ in said] == said


def test_a_job_for_later_outlives_its_worker_and_is_not_begun_before(app: Celery, stand: Stand) -> None:
    asked_at = time.time()
    sent = infer(app).apply_async(countdown=3)
    # Done already is one that this process has looked at too late, which is no fault of the worker's.
    stand.until(lambda: stand.outcomes([sent.id]) in ({"delayed": 1}, {"succeeded": 1}), LIMIT_S)
    run(stand.client, [stand.ledger.make_groups_due()])  # as a change of the configuration does
    for worker in stand.workers:
        worker.kill()
        worker.wait()
    stand.workers.clear()
    stand.start_worker()
    result = sent.get(timeout=LIMIT_S)
    assert result["status"] == "succeeded"
    assert result["attempts"][0]["started_at"] >= asked_at + 3


def test_a_job_for_later_that_expires_before_is_not_begun(app: Celery) -> None:
    sent = infer(app).apply_async(countdown=1.5, expires=0.5)
    with pytest.raises((Expired, TaskRevokedError)):
        sent.get(timeout=LIMIT_S)
