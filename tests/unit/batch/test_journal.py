"""The journal of a batch, and the output that is made of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from turnout.batch.journal import Journal, Unwritable
from turnout.batch.output import check_places, write_output

OK = {"status": "succeeded", "provider": "p", "in": 1, "out": 1, "s": 0.5, "costs": {"p": 7}}
FAILED = {"status": "failed", "failed_at": ["p"], "costs": {"p": 5}}


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def partial(output: str) -> Path:
    return Path(f"{output}.journal")


def written(output: str, entries: dict[int, dict[str, Any]], **options: Any) -> None:
    """A run that ends before its batch does."""
    with Journal(partial(output)) as journal:
        journal.begin(options)
        for number, entry in entries.items():
            journal.write(number, 100 + number, entry, b"%d\n" % number)


def test_results_come_out_in_the_inputs_order_with_those_of_earlier_runs(output: str) -> None:
    written(output, {3: OK, 1: OK, 2: OK})
    with Journal(partial(output)) as journal:
        assert journal.begin({}).resumed == 3
        assert (journal.has(3, 103), journal.has(4, 104)) == (True, False)
        journal.write(4, 104, FAILED, b"4\n")
        write_output(journal.output(), output)
    assert Path(output).read_bytes() == b"1\n2\n3\n4\n"


def test_results_may_come_out_as_completed(output: str) -> None:
    with Journal(partial(output)) as journal:
        journal.begin({})
        for number in (3, 1, 2):
            journal.write(number, 0, OK, b"%d\n" % number)
        write_output(journal.output(in_order=False), output)
    assert Path(output).read_bytes() == b"3\n1\n2\n"


def test_a_changed_line_has_no_result_and_the_last_one_written_counts(output: str) -> None:
    written(output, {1: FAILED, 2: OK})
    with Journal(partial(output)) as journal:
        tally = journal.begin({})
        assert not journal.has(1, 999)
        journal.drop(range(1, 2))
        assert (tally.finished, tally.cost_microusd) == (1, 12), "what was spent stays spent"
        journal.write(1, 999, OK, b"changed\n")
    with Journal(partial(output)) as journal:
        tally = journal.begin({})
        assert journal.has(1, 999)
        assert (tally.done["failed"], tally.done["succeeded"], tally.cost_microusd) == (0, 2, 19)
        write_output(journal.output(), output)
    assert Path(output).read_bytes() == b"changed\n2\n"


def test_lines_that_are_run_again_may_have_other_options_once_all_are_done(output: str) -> None:
    def begin(model: str, retry_failed: bool = False, ends: bool = False) -> bool:
        with Journal(partial(output)) as journal:
            journal.begin({"model": model}, retry_failed)
            known = journal.has(1, 101)
            if not known:
                journal.write(1, 101, FAILED, b"1\n")
            if ends:
                journal.end()
            return known

    begin("m")
    with pytest.raises(Unwritable, match="other options"):
        begin("n", retry_failed=True)
    assert begin("m", ends=True)
    with pytest.raises(Unwritable, match="other options"):
        begin("n")
    assert begin("m"), "and is killed with jobs under way"
    with pytest.raises(Unwritable, match="other options"):
        begin("n", retry_failed=True)
    assert begin("m", ends=True)
    assert not begin("n", retry_failed=True)
    with pytest.raises(Unwritable, match=r"model \(n, now m\)"):
        begin("m", retry_failed=True)
    assert begin("n"), "the others hold from then on"


def test_lines_without_an_answer_are_left_out_where_they_are_to_be_run_again(output: str) -> None:
    written(output, {1: FAILED, 2: OK, 3: FAILED})
    with Journal(partial(output)) as journal:
        journal.begin({})
        journal.drop(range(3, 4))
        journal.write(3, 103, OK, b"3\n")
    with Journal(partial(output)) as journal:
        tally = journal.begin({}, retry_failed=True)
        assert [journal.has(number, 100 + number) for number in (1, 2, 3)] == [False, True, True]
        assert (tally.finished, tally.failed) == (2, 0)


def test_results_or_errors_may_go_to_standard_output(output: str, capfdbinary: Any) -> None:
    lines = [(True, b"1\n"), (False, b"2\n")]
    write_output(lines, "-", f"{output}.errors")
    assert (capfdbinary.readouterr().out, Path(f"{output}.errors").read_bytes()) == (b"1\n", b"2\n")
    write_output(lines, output, "-")
    assert (capfdbinary.readouterr().out, Path(output).read_bytes()) == (b"2\n", b"1\n")
    write_output(lines, "-", "-")
    assert capfdbinary.readouterr().out == b"1\n2\n"


def test_a_standard_output_that_takes_no_more_is_told() -> None:
    write = "from turnout.batch.output import write_output; write_output([(True, b'1')], '-')"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", write], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr.endswith("Unwritable: can't write standard output: No space left on device\n")


def test_a_journal_keeps_its_batch_and_refuses_other_options_by_name(output: str) -> None:
    written(output, {1: OK}, model="m", lane="batch")
    with Journal(partial(output)) as journal:
        journal.begin({"model": "m", "lane": "batch"})
        first = journal.batch
    with Journal(partial(output)) as journal, pytest.raises(Unwritable, match=r"other options: model \(m, now None\)"):
        journal.begin({"lane": "batch"})
    partial(output).unlink()
    with Journal(partial(output)) as journal:
        journal.begin({})
        assert journal.batch != first


def test_a_strange_file_in_the_journals_place_is_not_touched(output: str) -> None:
    partial(output).write_text(strange := "my notes\n")
    with pytest.raises(Unwritable, match="not a journal"), Journal(partial(output)):
        pass
    assert partial(output).read_text() == strange


@pytest.mark.parametrize(
    "read",
    [
        lambda journal: journal.begin({}),
        lambda journal: [journal.has(number, 100 + number) for number in range(1, 1001)],
        lambda journal: journal.drop(range(1, 1001)),
        lambda journal: list(journal.output()),
    ],
)
def test_a_damaged_journal_is_told_as_such(output: str, read: Callable[[Journal], object]) -> None:
    written(output, dict.fromkeys(range(1, 1001), OK))
    whole = partial(output).read_bytes()
    partial(output).write_bytes(whole[: 8 * 4096] + b"Z" * (len(whole) - 8 * 4096))
    with Journal(partial(output)) as journal, pytest.raises(Unwritable, match="or damaged"):
        read(journal)


def test_one_run_at_a_time_writes_an_output(output: str) -> None:
    with Journal(partial(output)), pytest.raises(Unwritable, match="another `turnout run`"), Journal(partial(output)):
        pass


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
from turnout.batch.journal import Journal, Unwritable
from turnout.batch.output import write_output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)  # what a full disk is like
try:
    with Journal(Path(sys.argv[1] + ".journal")) as journal:
        done = journal.begin({}).finished
        for n in range(done + 1, 1001):
            journal.write(n, n, {"status": "succeeded"}, b"%d\\n" % n)
            journal.sync()
        write_output(journal.output(), sys.argv[1])
except Unwritable as error:
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
    with Journal(partial(output)) as journal:
        journal.begin({})
        journal.write(1, 0, OK, b"1\n")
        with pytest.raises(Unwritable, match=r"can't write .*out: "):
            write_output(journal.output(), output)
    assert {path.name for path in Path(output).parent.iterdir()} == {"out", "out.journal"}


def test_an_output_never_takes_the_place_of_its_input_nor_of_another_nor_of_what_is_no_file(output: str) -> None:
    source = Path(output).with_name("in.jsonl")
    source.touch()
    os.mkfifo(pipe := f"{output}.pipe")
    Path(output).symlink_to(source)
    for places, told in (
        ((output, None, str(source)), "is the input"),
        (("-", str(source), str(source)), "is the input"),
        (("new", None, "new.tmp"), "is the input"),
        (("new", "./new"), "is the output"),
        (("new", "new.journal"), "is the output"),
        (("/dev/null",), "not a regular file"),
        (("/dev/stdout",), "not a regular file"),
        ((pipe,), "not a regular file"),
        ((str(source.parent),), "not a regular file"),
    ):
        with pytest.raises(Unwritable, match=told):
            check_places(*places)
    check_places("-", str(source), "-")
    check_places("new", "other", str(source))


@pytest.mark.parametrize("place", ["out", "out/out", "file/out"])
def test_an_output_that_leads_nowhere_is_told_before_anything_is_done(place: str, output: str) -> None:
    Path(output).symlink_to(output)
    Path(output).with_name("file").touch()
    with pytest.raises(Unwritable, match=f"can't write .*{place}: (Too many levels of symbolic links|Not a directory)"):
        check_places(str(Path(output).parent / place))


def test_a_folder_that_can_not_be_written_is_told_before_anything_is_done(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (locked := Path(output).with_name("locked")).mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)  # root may write anywhere
    with pytest.raises(Unwritable, match=r"locked/errors: its folder can't be written"):
        check_places(output, str(locked / "errors"))
    check_places(output, str(locked.with_name("new") / "errors"))
    write_output([(False, b"1\n")], output, str(locked.with_name("new") / "errors"))
    assert (locked.with_name("new") / "errors").read_text() == "1\n"


def test_an_output_that_is_a_link_stays_one(output: str) -> None:
    (target := Path(output).with_name("target")).write_text("before")
    Path(output).symlink_to(target)
    write_output([(True, b"1\n")], output)
    assert (Path(output).is_symlink(), target.read_text()) == (True, "1\n")


def test_an_output_is_open_to_those_alone_who_could_read_the_one_that_it_replaces(output: str) -> None:
    def modes() -> Iterator[int]:
        for path in (Path(f"{output}.tmp"), Path(output)):
            yield stat.S_IMODE(path.stat().st_mode)

    def lines() -> Iterator[tuple[bool, bytes]]:
        yield True, b"1\n"
        seen.append(tuple(modes()))
        yield True, b"2\n"

    seen: list[tuple[int, ...]] = []
    for mode in (0o600, 0o666, 0o440):
        Path(output).touch()
        Path(output).chmod(mode)
        write_output(lines(), output)
        assert (seen.pop(), stat.S_IMODE(Path(output).stat().st_mode)) == ((0o600, mode), mode)


WRITER = """
import sys
from pathlib import Path
from turnout.batch.journal import Journal
with Journal(Path(sys.argv[1] + ".journal")) as journal:
    journal.begin({})
    n = 0
    while True:
        n += 1
        journal.write(n, n, {"status": "succeeded"}, b"%d\\n" % n)
        if n % 50 == 0:
            journal.sync()
"""


def test_a_writer_that_is_killed_leaves_whole_lines(output: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, output])
    journal = partial(output)
    while not journal.exists() or journal.stat().st_size < 300_000:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    with Journal(partial(output)) as journal:
        held = journal.begin({}).resumed
        write_output(journal.output(), output)
    assert held > 1000
    assert Path(output).read_text().split() == [str(n) for n in range(1, held + 1)]
