"""The feeder against a real Redis; the worker is the test itself, so that each settlement happens when it is wanted."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from turnout.batch import feeder
from turnout.batch.feeder import Feeder, Stopped
from turnout.batch.journal import Journal, Unwritable
from turnout.batch.line import Defaults
from turnout.batch.output import write_output
from turnout.batch.reading import Reading, Refusal
from turnout.batch.source import Source, SourceError
from turnout.batch.tally import Tally
from turnout.ledger import Claimed, Keys, Ledger, Operation, Settlement, run
from turnout.request import InferenceResponse, Lane, Usage
from turnout.result import Attempt, JobResult, JobStatus, Problem


class Bench:
    """A batch's files, and a worker."""

    def __init__(self, client: redis.Redis, folder: Path) -> None:
        self.client, self.ledger, self.folder = client, Ledger(Keys()), folder
        self.source, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.asked: list[str] = []
        """Prompts of the jobs that were worked on, in this order."""
        self.most_queued = self.most_bytes = 0

    def write(self, *lines: Any) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.source.write_text("".join(f"{text}\n" for text in texts))

    def work(self, most: int = 10_000, fails: bool = False) -> None:
        """Answer what is queued now."""
        ids = self.queued()
        sizes = run(self.client, [Operation(("HSTRLEN", self.ledger.keys.job(id), "payload"), int) for id in ids])
        self.most_queued = max(self.most_queued, len(ids))
        self.most_bytes = max(self.most_bytes, sum(sizes))
        claims = run(self.client, [self.ledger.claim(id, "worker", 30) for id in ids[:most]])
        self.client.ltrim(self.ledger.keys.queue(Lane.STANDARD), 0, -len(claims) - 1)
        run(self.client, [self.settled(id, claim, fails) for id, claim in zip(ids[:most], claims, strict=True)])

    def settled(self, id: str, claim: Claimed, fails: bool) -> Operation[Settlement]:
        prompt = claim.request.prompt or ""
        self.asked.append(prompt)
        result = JobResult(
            id=id, status=JobStatus.FAILED, error=Problem(code="unavailable", message="it is down"), settled_at=1.0
        )
        if not fails:
            call = Attempt(endpoint="p/m", provider="p", model="m", started_at=1.0, cost_microusd=7)
            answer = InferenceResponse(
                text=f"re {prompt[:20]}", usage=Usage(input_tokens=3, output_tokens=2), cost_microusd=7, provider="p",
                model_requested="m", model_served="m",
            )  # fmt: skip
            result = JobResult(
                id=id, status=JobStatus.SUCCEEDED, response=answer, attempts=(call,), cost_microusd=7, settled_at=1.0
            )
        return self.ledger.settle(claim.token, result, None, 60, batch=claim.batch)

    def queued(self) -> list[str]:
        ids: Any = self.client.zrange(self.ledger.keys.pending(Lane.STANDARD), 0, -1)
        return [id.decode() for id in ids]

    def feed(
        self, on_progress: Any = None, stopping: Any = lambda: False, refusal: Refusal | None = None, **options: Any
    ) -> Tally:
        with Journal(self.folder / "journal") as journal:
            journal.begin({"dedupe": True} if options.get("dedupe") else {}, options.get("retry_failed", False))
            reading = Reading(Source(str(self.source)), journal, Defaults(), refusal)
            fed = Feeder(self.client, self.ledger, reading, stopping, **options)
            tally = fed.run(on_progress or (lambda tally: self.work()))
            write_output(journal.output(), str(self.output))
        return tally

    def stop_after(self, lines: int, **options: Any) -> None:
        """A run that is interrupted when so many have their result."""
        done = Tally()

        def note(tally: Tally) -> None:
            nonlocal done
            done = tally
            self.work(most=lines - tally.finished)

        with pytest.raises(Stopped):
            self.feed(note, lambda: done.finished >= lines, **options)

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def texts(self) -> list[str | None]:
        return [line["response"] and line["response"]["text"] for line in self.told()]


@pytest.fixture
def bench(flushed: redis.Redis, tmp_path: Path) -> Iterator[Bench]:
    return Bench(flushed, tmp_path)


def test_every_line_has_its_result_in_order_and_nothing_stays_in_redis(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}", "id": f"i{n}"} for n in range(600)))
    tally = bench.feed(max_cost_microusd=1_000_000)
    assert [line["id"] for line in bench.told()] == [f"i{n}" for n in range(600)]
    assert (tally.lines, tally.finished, tally.cost_microusd) == (600, 600, 4200)
    left = {key.decode() for key in bench.client.scan_iter()}
    assert left == {bench.ledger.keys.counts}, "the jobs and the ceiling are gone"


def test_money_of_calls_that_no_result_tells_of_is_told_all_the_same(bench: Bench) -> None:
    bench.write({"prompt": "q0"})

    def book(tally: Tally) -> None:
        for id in bench.queued():
            batch: Any = bench.client.hget(bench.ledger.keys.job(id), "batch")
            account = f"batch:{batch.decode()}"  # of a call that died with its worker, and one of a line now edited
            bench.client.hset(bench.ledger.keys.money, mapping={f"{account}|unsure": 9, f"{account}|spent": 7 + 5})
        bench.work()

    tally = bench.feed(book)
    assert (tally.cost_microusd, tally.unsure_microusd) == (12, 9)


def test_the_backlog_stays_within_the_window_of_jobs_and_of_bytes(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(900)))
    bench.feed(window=300)
    assert 250 <= bench.most_queued <= 300
    bench.write(*({"prompt": "x" * 10_000} for n in range(300)))
    bench.feed(window_bytes=200_000)
    assert bench.most_bytes <= 200_000 + 11_000


def test_a_line_from_a_pipe_is_answered_though_the_next_one_is_late_and_a_stop_waits_for_none(bench: Bench) -> None:
    os.mkfifo(bench.source)
    stopped = threading.Event()

    def write() -> None:
        with bench.source.open("w") as pipe:
            print('{"prompt": "q0"}', file=pipe, flush=True)
            stopped.wait(20)

    (writing := threading.Thread(target=write)).start()
    bench.stop_after(1)
    stopped.set()
    writing.join()
    assert bench.asked == ["q0"]


def test_an_interrupted_batch_goes_on_without_asking_anything_twice(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(900)))
    bench.stop_after(100)
    bench.work()  # a worker that goes on while nobody feeds: it settles lines far from the first that is missing
    bench.stop_after(500)
    assert bench.feed().resumed >= 500
    assert bench.texts() == [f"re q{n}" for n in range(900)]
    assert len(bench.asked) == len(set(bench.asked)) == 900


def test_a_line_that_was_changed_meanwhile_is_asked_again_and_no_other(bench: Bench) -> None:
    lines = [{"prompt": f"q{n}"} for n in range(300)]
    bench.write(*lines[:10], '{"prompt": 5}', *lines[11:])
    bench.stop_after(300 - 20)
    bench.asked.clear()
    lines[3] = {"prompt": "changed"}
    bench.write(*lines[:250])
    bench.feed()
    assert bench.texts() == [f"re {line['prompt']}" for line in lines[:250]]
    assert set(bench.asked) >= {"changed", "q10"}
    assert len(bench.asked) <= 2 + 20


def test_lines_that_have_moved_keep_their_answers(bench: Bench) -> None:
    lines = [{"prompt": f"q{n}", "id": f"i{n}"} if n % 2 else {"prompt": f"q{n}"} for n in range(300)]
    bench.write(*lines)
    bench.feed()
    for edited in (lines[1:], [{"prompt": "new"}, *lines[1:40], *lines[50:]], lines[::-1], lines):
        before = len(bench.asked)
        bench.write(*edited)
        tally = bench.feed()
        new = [line["prompt"] for line in edited if line not in lines]
        assert bench.asked[before:] == new
        assert bench.texts() == [f"re {line['prompt']}" for line in edited]
        assert [line["line"] for line in bench.told()] == [*range(1, len(edited) + 1)]
        assert [line["id"] for line in bench.told()] == [line.get("id", n) for n, line in enumerate(edited, 1)]
        assert (tally.finished, tally.resumed) == (len(edited), len(edited) - len(new))
    assert tally.cost_microusd == 7 * 301, "what was spent stays spent, and is spent once"


def test_lines_that_have_moved_while_they_were_under_way_are_asked_once(bench: Bench) -> None:
    lines = [{"prompt": f"q{n}"} for n in range(300)]
    bench.write(*lines)
    bench.stop_after(100)
    bench.write({"prompt": "new"}, *lines)
    bench.feed()
    assert bench.texts() == ["re new", *(f"re q{n}" for n in range(300))]
    assert len(bench.asked) == 301


def test_of_lines_that_are_alike_each_is_asked_once_whichever_are_answered_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(*({"prompt": "same"} for _ in range(40)))
    in_order = bench.queued
    monkeypatch.setattr(bench, "queued", lambda: in_order()[::-1])
    bench.stop_after(10)
    bench.write({"prompt": "new"}, *({"prompt": "same"} for _ in range(40)))
    bench.feed()
    assert bench.asked.count("same") == 40


def test_jobs_that_redis_has_lost_are_submitted_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "RECHECK_S", 0.0)
    bench.write(*({"prompt": f"q{n}"} for n in range(20)))
    lost = False

    def lose_once(tally: Tally) -> None:
        nonlocal lost
        if bench.queued() and not lost:  # a failover to a replica that lacks the last second
            bench.client.flushdb()
            lost = True
        else:
            bench.work()

    assert bench.feed(lose_once).finished == 20


def test_identical_lines_are_asked_once_however_far_apart(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n % 3}", "id": n} for n in range(1200)))
    bench.stop_after(900, dedupe=True, window=300)
    tally = bench.feed(dedupe=True, window=300)
    assert sorted(bench.asked) == ["q0", "q1", "q2"]
    assert [(line["id"], line["response"]["text"]) for line in bench.told()] == [
        (n, f"re q{n % 3}") for n in range(1200)
    ]
    assert sum(line["cost_usd"] for line in bench.told()) == pytest.approx(21e-6)
    assert (tally.shared, tally.cost_microusd) == (1197, 21)


def test_a_batch_goes_on_with_dedupe_only_as_it_was_begun(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(5)))
    bench.stop_after(1, dedupe=True)
    with pytest.raises(Unwritable, match=r"dedupe \(True, now None\)"):
        bench.feed()


def test_failed_lines_are_asked_again_only_when_that_is_wanted(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(10)))
    bench.feed(lambda tally: bench.work(fails=True))
    assert bench.feed().failed == 10, "the same command alone asks nothing again"
    assert len(bench.asked) == 10
    tally = bench.feed(retry_failed=True)
    assert (tally.failed, len(bench.asked)) == (0, 20)
    assert bench.texts() == [f"re q{n}" for n in range(10)]


def test_a_failure_that_a_kill_has_left_in_redis_is_no_answer_to_a_retry(bench: Bench) -> None:
    bench.write({"prompt": "q"})
    bench.stop_after(0)
    bench.work(fails=True)
    assert bench.feed(retry_failed=True).failed == 0
    assert bench.texts() == ["re q"]


def test_a_result_that_can_not_be_read_is_the_end_of_its_line_alone_and_is_not_paid_again_once_it_can(
    bench: Bench,
) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(3)))
    bench.stop_after(0)
    ids, key = bench.queued(), bench.ledger.keys.result
    bench.work()
    id = ids[bench.asked.index("q1")]
    kept = bench.client.get(key(id))
    bench.client.set(key(id), kept.replace(b'"provider":"p"', b'"provider":["p"]'))
    assert bench.feed().failed == 1
    assert [line["error"] and line["error"]["code"] for line in bench.told()] == [None, "unreadable", None]
    bench.client.set(key(id), kept)
    assert bench.feed(retry_failed=True).failed == 0
    assert (bench.texts(), len(bench.asked)) == (["re q0", "re q1", "re q2"], 3)
    assert not bench.client.exists(key(id))


def test_a_line_that_no_endpoint_can_serve_is_told_its_number_and_the_reason(bench: Bench) -> None:
    bench.write({"prompt": "good"}, {"prompt": "bad", "model": "m"})
    tally = bench.feed(refusal=lambda request: "nobody has it" if request.model else None)
    assert [line["status"] for line in bench.told()] == ["succeeded", "failed"]
    assert bench.told()[1]["error"] == {"code": "refused", "message": "line 2: nobody has it"}
    assert tally.done["refused"] == 1


def test_lines_before_the_place_where_an_input_breaks_off_are_done(bench: Bench) -> None:
    bench.write(*({"prompt": f"{n} {n**99}"} for n in range(400)))
    whole = gzip.compress(bench.source.read_bytes())
    bench.source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="can't read"):
        bench.feed()
    done = len(bench.asked)
    assert 0 < done < 400
    bench.source.write_bytes(whole)
    assert bench.feed().resumed == done
    assert len(set(bench.asked)) == len(bench.asked) == 400


def test_full_redis_is_waited_for_and_may_be_interrupted(bench: Bench) -> None:
    bench.write(*({"prompt": f"q{n}"} for n in range(5)))
    bench.client.set(bench.ledger.keys.intake, "memory")
    with pytest.raises(Stopped):
        bench.feed(stopping=iter([False] * 3 + [True] * 9).__next__)
    bench.client.set(bench.ledger.keys.intake, "memory", px=300)
    assert bench.feed().finished == 5


def test_jobs_that_a_full_redis_never_took_end_once_however_often_they_are_looked_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "RECHECK_S", 0.0)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    bench.write(*({"prompt": f"q{n}", "constraints": {"deadline": soon}} for n in range(300)), {"prompt": "last"})
    bench.client.set(bench.ledger.keys.intake, "memory", px=1500)
    assert bench.feed().done == {"expired": 300, "succeeded": 1}
    assert bench.asked == ["last"]


def test_a_ceiling_holds_for_a_file_over_all_of_its_runs_though_each_has_a_new_redis(bench: Bench) -> None:
    ceilings: list[Any] = []

    def note(tally: Tally) -> None:
        ceilings.extend(bench.client.hvals(bench.ledger.keys.ceilings))
        bench.work()

    bench.write({"prompt": "q"}, {"prompt": "r"})
    bench.feed(note, max_cost_microusd=100)
    for prompt in ("s", "t"):
        bench.client.flushdb()
        bench.write({"prompt": "q"}, {"prompt": prompt})
        bench.feed(note, max_cost_microusd=100)
    assert list(map(int, dict.fromkeys(ceilings))) == [100, 86, 79]


def test_a_lower_ceiling_or_none_holds_from_the_next_run_on(bench: Bench) -> None:
    bench.write({"prompt": "q"}, {"prompt": "r"})
    bench.stop_after(1, max_cost_microusd=5)
    ceilings: Any = bench.client.hvals(bench.ledger.keys.ceilings)
    assert ceilings == [b"5"]
    bench.stop_after(1)
    assert not bench.client.exists(bench.ledger.keys.ceilings)
