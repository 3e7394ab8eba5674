"""The journal of a batch, and the output that is made of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from turnout.batch.sink import Sink, SinkError

OK = {"status": "succeeded", "provider": "p", "in": 1, "out": 1, "s": 0.5, "costs": {"p": 7}}
FAILED = {"status": "failed", "failed_at": ["p"], "costs": {"p": 5}}


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def written(output: str, entries: dict[int, dict[str, Any]], **options: Any) -> None:
    """A run that ends before its batch does."""
    with Sink(output) as sink:
        sink.begin(options)
        for number, entry in entries.items():
            sink.write(number, 100 + number, entry, b"%d\n" % number)


def test_results_come_out_in_the_inputs_order_and_a_torn_line_is_done_again(output: str) -> None:
    written(output, {3: OK, 1: OK, 2: OK})
    with Path(f"{output}.partial").open("ab") as journal:
        journal.write(b'4\t68\t{"status": "succ')
    with Sink(output) as sink:
        assert sink.begin({}).resumed == 3
        assert (sink.has(3, 103), sink.has(4, 104)) == (True, False)
        sink.write(4, 104, FAILED, b"4\n")
        sink.finish()
    assert Path(output).read_bytes() == b"1\n2\n3\n4\n"
    assert not Path(f"{output}.partial").exists()


def test_results_may_come_out_as_completed(output: str) -> None:
    with Sink(output, in_order=False) as sink:
        sink.begin({})
        for number in (3, 1, 2):
            sink.write(number, 0, OK, b"%d\n" % number)
        sink.finish()
    assert Path(output).read_bytes() == b"3\n1\n2\n"


def test_a_changed_line_has_no_result_and_the_last_one_written_counts(output: str) -> None:
    written(output, {1: FAILED, 2: OK})
    with Sink(output) as sink:
        tally = sink.begin({})
        assert not sink.has(1, 999)
        sink.drop(range(1, 2), tally)
        assert (tally.finished, tally.cost_microusd) == (1, 12), "what was spent stays spent"
        sink.write(1, 999, OK, b"changed\n")
    with Sink(output) as sink:
        tally = sink.begin({})
        assert sink.has(1, 999)
        assert (tally.done["failed"], tally.done["succeeded"], tally.cost_microusd) == (0, 2, 19)
        sink.finish()
    assert Path(output).read_bytes() == b"changed\n2\n"


def test_lines_without_an_answer_are_left_out_where_they_are_to_be_run_again(output: str) -> None:
    written(output, {1: FAILED, 2: OK, 3: FAILED})
    with Sink(output) as sink:
        sink.begin({})
        sink.write(3, 103, OK, b"3\n")
    with Sink(output) as sink:
        tally = sink.begin({}, retry_failed=True)
        assert [sink.has(number, 100 + number) for number in (1, 2, 3)] == [False, True, True]
        assert (tally.finished, tally.failed) == (2, 0)


def test_errors_go_to_a_file_of_their_own(output: str) -> None:
    with Sink(output, f"{output}.errors") as sink:
        sink.begin({})
        sink.write(1, 0, OK, b"good\n")
        sink.write(2, 0, FAILED, b"bad\n")
        sink.finish(keep_journal=True)
    assert (Path(output).read_bytes(), Path(f"{output}.errors").read_bytes()) == (b"good\n", b"bad\n")
    assert Path(f"{output}.partial").exists()


def test_a_journal_keeps_its_batch_and_refuses_other_options_by_name(output: str) -> None:
    written(output, {1: OK}, model="m", lane="batch")
    with Sink(output) as sink:
        sink.begin({"model": "m", "lane": "batch"})
        first = sink.batch
    with Sink(output) as sink, pytest.raises(SinkError, match=r"other options: model \(m, now None\)"):
        sink.begin({"lane": "batch"})
    Path(f"{output}.partial").unlink()
    with Sink(output) as sink:
        sink.begin({})
        assert sink.batch != first


def test_a_strange_file_in_the_journals_place_is_not_touched(output: str) -> None:
    Path(f"{output}.partial").write_text("my notes\n")
    with Sink(output) as sink, pytest.raises(SinkError, match="no journal"):
        sink.begin({})
    assert Path(f"{output}.partial").read_text() == "my notes\n"


def test_one_run_at_a_time_writes_an_output(output: str) -> None:
    with Sink(output), pytest.raises(SinkError, match="another `turnout run`"), Sink(output):
        pass


LIMITED = """
import json, resource, signal, sys
from turnout.batch.sink import Sink, SinkError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # what a full disk is like
try:
    with Sink(sys.argv[1]) as sink:
        done = sink.begin({}).finished
        for n in range(done + 1, 1001):
            sink.write(n, n, {"status": "succeeded"}, b"%d\\n" % n)
            sink.sync()
        sink.finish()
except SinkError as error:
    print(error)
"""


def test_a_full_disk_loses_nothing_that_was_safe(output: str) -> None:
    def fill(limit: int) -> str:
        command = [sys.executable, "-c", LIMITED, output, str(limit)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    Path(output).write_text("as before")
    assert "can't write" in fill(10_000)
    assert Path(output).read_text() == "as before"
    assert fill(1_000_000) == ""
    assert Path(output).read_text().split() == [str(n) for n in range(1, 1001)]


def test_an_output_that_can_not_be_written_leaves_the_journal_and_no_half_file(output: str) -> None:
    Path(output).mkdir()
    with Sink(output) as sink:
        sink.begin({})
        sink.write(1, 0, OK, b"1\n")
        with pytest.raises(SinkError, match="all results are in"):
            sink.finish()
    assert {path.name for path in Path(output).parent.iterdir()} == {"out", "out.partial"}


WRITER = """
import sys
from turnout.batch.sink import Sink
with Sink(sys.argv[1]) as sink:
    sink.begin({})
    n = 0
    while True:
        n += 1
        sink.write(n, n, {"status": "succeeded"}, b"%d\\n" % n)
        if n % 50 == 0:
            sink.sync()
"""


def test_a_writer_that_is_killed_leaves_whole_lines(output: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, output])
    journal = Path(f"{output}.partial")
    while not journal.exists() or journal.stat().st_size < 100_000:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    with Sink(output) as sink:
        held = sink.begin({}).resumed
        sink.finish()
    assert held > 1000
    assert Path(output).read_text().split() == [str(n) for n in range(1, held + 1)]
