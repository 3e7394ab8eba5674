"""Lines of batch files in and out."""

from __future__ import annotations

import gzip
import json
import os
import resource
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import date
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from turnout.batch.ids import Uniqueness
from turnout.batch.jobs import job_id
from turnout.batch.journal import Unwritable
from turnout.batch.line import MAX_LINE_BYTES, Defaults, Format, Line, RawLine, RequestOrProblem
from turnout.batch.parse import detect, parse
from turnout.batch.render import never_run, reason, render
from turnout.batch.source import Source, SourceError, read
from turnout.batch.tally import Tally, numbers_of
from turnout.messages import FunctionCall, Message, ToolCall
from turnout.request import InferenceRequest, InferenceResponse, RoutingConstraints, Usage
from turnout.result import Attempt, JobResult, JobStatus, Problem

CHAT: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
}
FIELDS = ["custom_id", "method", "url", "body", "id", "prompt", "messages", "role", "content", "tools", "constraints"]
ANSWER = InferenceResponse(
    text="Hello", usage=Usage(input_tokens=3, output_tokens=2), cost_microusd=7, provider="p", model_requested="m",
    model_served="m-1", latency_s=0.5,
)  # fmt: skip
OK = Attempt(endpoint="p/m", provider="p", model="m", started_at=1.0, cost_microusd=7)
BROKEN = Attempt(endpoint="q/m", provider="q", model="m", started_at=0.5, failure="server_error", unsure_microusd=3)
DONE = JobResult(
    id="j", status=JobStatus.SUCCEEDED, response=ANSWER, attempts=(BROKEN, OK), failovers=1, cost_microusd=7,
    unsure_microusd=3,
)  # fmt: skip


def line(value: Any, format: Format = Format.PLAIN, number: int = 4) -> tuple[Line, RequestOrProblem]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse(RawLine(number, raw, format))


def good(told: tuple[Line, RequestOrProblem]) -> tuple[Line, InferenceRequest]:
    line, asked = told
    assert isinstance(asked, InferenceRequest), asked
    return line, asked


def test_plain_lines_are_prompts_messages_or_strings() -> None:
    for value in ({"prompt": "Hi", "id": 7}, {"messages": [{"role": "user", "content": "Hi"}], "id": 7}):
        told, request = good(line(value))
        assert (told.custom_id, request.chat[0].text) == (7, "Hi")
    good(line("just a prompt"))


WHOLE: dict[str, Any] = {
    "prompt": "Hi",
    "messages": [{"role": "user", "content": "Hi"}],
    "input": ["a", "b"],
    "model": ["m", "n"],
    "max_output_tokens": 8,
    "temperature": 0,
    "top_p": 0.5,
    "stop": ["END"],
    "seed": 5,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "required",
    "response_format": {"type": "json_schema", "json_schema": {"type": "object"}, "name": "n", "max_repairs": 1},
    "reasoning_effort": "low",
    "dimensions": 8,
    "timeout_s": 5,
    "on_unsupported": "fail",
    "extras": {"groq": {"service_tier": "flex"}},
    "metadata": {"team": "support"},
    "constraints": {
        "only": ["a"],
        "ignore": ["b"],
        "order": ["a"],
        "max_cost_usd": 1,
        "max_input_usd_per_mtok": 1,
        "max_output_usd_per_mtok": 1,
        "max_latency_s": 1,
        "deadline": "2030-01-31T12:00:00Z",
        "deadline_s": 5,
        "regions": ["eu"],
        "no_training": True,
        "zero_retention": True,
        "capabilities": ["vision", "reasoning"],
        "min_context_tokens": 5,
        "min_quality": "good",
        "strategy": "cost",
        "lane": "batch",
        "tenant": "t",
        "allow_fallback": False,
    },
}


@pytest.mark.parametrize("content", ["prompt", "messages", "input"])
def test_a_line_may_have_every_field_that_there_is(content: str) -> None:
    assert WHOLE.keys() == InferenceRequest.model_fields.keys()
    assert WHOLE["constraints"].keys() == RoutingConstraints.model_fields.keys()
    fields = {name: value for name, value in WHOLE.items() if name not in {"prompt", "messages", "input"} - {content}}
    _, request = good(line(fields))
    assert request == InferenceRequest.model_validate(fields)
    alone = {**fields, "stop": "END", "constraints": {"only": "a", "regions": "eu", "capabilities": "vision"}}
    assert good(line(alone))[1].constraints.capabilities == {"vision"}


def test_what_a_line_says_wins_over_the_defaults() -> None:
    defaults = Defaults({"model": "m"}, {"lane": "batch", "only": ["a"]})
    _, request = good(parse(RawLine(1, b'{"prompt": "Hi", "constraints": {"only": ["b"]}}', Format.PLAIN), defaults))
    assert (request.models, request.constraints.only) == (("m",), ("b",))
    assert request.constraints.lane == "batch"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"prompt": "a"', "invalid_json"), (b'{"prompt": 7}', "invalid_request"), (b"[]", "invalid_request"),
        (b'{"prompt": "a", "modle": 1}', "invalid_request"), (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "a", "seed": ' + b"9" * 4400 + b"}", "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"), (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "' + b"a" * 1_000_001 + b'"}', "too_large"),
        (b"[" * 100_000, "invalid_json"), (b'{"prompt": "a", "extras": {"p": {"x": 1e999}}}', "invalid_request"),
        (b'{"prompt": "a", "id": {}}', "invalid_request"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_reported(raw: bytes, code: str) -> None:
    where, bad = line(raw)
    assert isinstance(bad, Problem)
    assert bad.code == code
    assert bad.message.startswith("line 4: ")
    told = json.loads(render(where, never_run(bad)))
    assert (told["line"], told["status"]) == (4, "failed")
    assert reason(render(where, never_run(bad))) == bad.message


def test_what_is_no_json_is_told_its_place() -> None:
    assert [getattr(line(raw)[1], "message", None) for raw in (b"A?", b'{"prompt": "a')] == [
        "line 4: not JSON: expected value at column 1",
        "line 4: not JSON: EOF while parsing a string at column 13",
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "a b"}, "model: must be a name without spaces"),
        ({"model": ["m", "a b"]}, "model.1: must be a name without spaces"),
        ({"modle": "m"}, "modle: unknown field"),
        ({"constraints": {"deadline": "2030-01-31T12:00:00"}}, "constraints.deadline: must carry a time zone"),
        ({"constraints": {"capabilities": ["sight"]}}, "constraints.capabilities.0: Input should be 'tools', "),
        ({"constraints": {"capabilities": [["vision"]]}}, "constraints.capabilities: each must be a string"),
    ],
)
def test_a_problem_names_its_field_and_says_what_is_wrong(fields: dict[str, Any], told: str) -> None:
    _, bad = line({"prompt": "A?", **fields})
    assert isinstance(bad, Problem)
    assert bad.message.startswith(f"line 4: {told}")


@pytest.mark.parametrize("url", [None, 3, [], {}, "/v1/images"])
def test_an_openai_line_with_a_wrong_url_is_bad_whatever_stands_there(url: Any) -> None:
    _, bad = line({**CHAT, "url": url}, Format.OPENAI)
    assert isinstance(bad, Problem)
    assert bad.message.startswith("line 4: url: must be one of /v1/chat/completions, ")


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=60) | HOSTILE.map(lambda value: json.dumps(value).encode()), max_size=20))
@pytest.mark.parametrize("format", list(Format))
def test_as_many_outcomes_as_lines_whatever_they_hold_each_with_its_id(format: Format, raws: list[bytes]) -> None:
    ids = [f"id-{number}" for number in range(len(raws))]
    field = "custom_id" if format is Format.OPENAI else "id"
    named = [
        raw if i % 2 else b'{"%s": "%s", %s' % (field.encode(), ids[i].encode(), raw) for i, raw in enumerate(raws)
    ]
    unique = Uniqueness()
    lines = [parse(RawLine(number, raw, format)) for number, raw in enumerate(named, 1)]
    ends = [unique.check(line, asked) for line, asked in lines]
    results = [never_run(asked) if isinstance(asked, Problem) else DONE for asked in ends]
    told = [json.loads(render(line, result)) for (line, _), result in zip(lines, results, strict=True)]
    assert [line.number for line, _ in lines] == list(range(1, len(raws) + 1))
    if format is not Format.TEXT:
        assert [one[field] for one in told[::2]] == ids[::2], "also of a broken line, where its id is legible"


def test_an_id_that_an_earlier_line_has_is_bad_and_names_that_line() -> None:
    unique = Uniqueness()
    told = [unique.check(*parse(RawLine(n, b'{"prompt": "A?", "id": "a"}', Format.PLAIN))) for n in (3, 5)]
    assert isinstance(told[0], InferenceRequest)
    assert isinstance(told[1], Problem)
    assert (told[1].code, told[1].message) == (
        "duplicate_custom_id", "line 5: id 'a' was already used on line 3; ids must be unique",
    )  # fmt: skip


def test_a_line_of_text_is_a_prompt_as_it_stands_and_as_long_as_any() -> None:
    text = '{"prompt": "'.ljust(MAX_LINE_BYTES, "?")
    _, found = parse(RawLine(1, text.encode(), Format.TEXT))
    assert isinstance(found, InferenceRequest)
    assert found.prompt == text


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
def test_a_line_may_be_as_long_as_its_source_allows(tmp_path: Path, name: str) -> None:
    prompt = "a" * 1_500_000
    head = {"x.jsonl": f'{{"prompt": "{prompt}"}}', "x.csv": f"prompt\n{prompt}", "x.txt": prompt}[name]
    (tmp_path / name).write_text(f"{head}\nShort\n" if name != "x.jsonl" else f'{head}\n"Short"\n')
    (_, long), (_, short) = read(Source(str(tmp_path / name)), Defaults())
    assert isinstance(long, Problem)
    assert (long.code, long.message) == (
        "too_large", "line 1: the line is longer than 1,000,000 bytes; --max-line-bytes allows longer ones",
    )  # fmt: skip
    assert isinstance(short, InferenceRequest)
    (_, long), _ = read(Source(str(tmp_path / name), max_line_bytes=1_600_000), Defaults())
    assert isinstance(long, InferenceRequest)
    assert long.prompt == prompt


def test_ids_that_no_disk_has_room_for_are_told_as_such() -> None:
    unique, before = Uniqueness(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(Unwritable, match="to a temporary file"):
            assert not [unique.note(f"{number:0500}", number) for number in range(1, 20_000)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("line", "format"),
    [
        (json.dumps(CHAT), Format.OPENAI),
        ('{"custom_id": "a", "me', Format.OPENAI),
        ('{"custom_id": "a"}', Format.OPENAI),
        ('{"prompt": "a", "metadata": {"custom_id": "b", "body": "c"}}', Format.PLAIN),
        ('"a"', Format.PLAIN),
        ('{"prompt": "a', None),
        ("[]", None),
    ],
)
def test_a_line_tells_its_format_unless_it_is_illegible(line: str, format: Format | None) -> None:
    assert detect(line.encode()) is format


def test_a_first_line_that_is_bad_makes_no_other_bad(tmp_path: Path) -> None:
    (file := tmp_path / "in.jsonl").write_text("# exported today\n" + json.dumps(CHAT) + "\n")
    (comment, problem), (_, request) = read(Source(str(file)), Defaults())
    assert isinstance(problem, Problem)
    assert isinstance(request, InferenceRequest)
    assert comment.format is Format.OPENAI, "so that all results have one shape"


def test_lines_of_no_format_are_told_of_though_none_follows(tmp_path: Path) -> None:
    (file := tmp_path / "in.jsonl").write_text("# nothing here\n" * 50)
    assert [raw.number for raw in Source(str(file))] == [*range(1, 51)]


def test_a_jobs_id_follows_from_batch_line_and_request() -> None:
    assert job_id("b", 1, "{}") == job_id("b", 1, "{}")
    assert len({job_id("b", 1, "{}"), job_id("c", 1, "{}"), job_id("b", 2, "{}"), job_id("b", 1, "")}) == 4


def test_lines_that_are_alike_are_told_apart_by_how_many_come_before() -> None:
    alike, raws = Uniqueness(), [RawLine(n, data, Format.TEXT) for n, data in enumerate((b"a", b"b", b"a", b"a"))]
    digests = [raw.digest(before=alike.times(raw.digest())) for raw in raws]
    assert len(set(digests)) == 4
    assert digests[:2] == [raw.digest() for raw in raws[:2]]


def test_sources_of_every_kind_give_the_same_lines(tmp_path: Path) -> None:
    text = b'{"prompt": "a"}\n\n{"prompt": "b"}\n'
    (tmp_path / "x.jsonl").write_bytes(text)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "X.CSV").write_text("kind,prompt\n1,a\n2,b\n")
    plain = [raw.data for raw in Source(str(tmp_path / "x.jsonl"))]
    assert (
        plain == [raw.data for raw in Source(str(tmp_path / "x.jsonl.gz"))] == [b'{"prompt": "a"}', b'{"prompt": "b"}']
    )
    assert [Source(str(tmp_path / name)).count() for name in ("x.jsonl", "x.jsonl.gz", "X.CSV")] == [2, None, None]
    rows = [good(one) for one in read(Source(str(tmp_path / "X.CSV")), Defaults())]
    assert [request.metadata for _, request in rows] == [{"kind": "1"}, {"kind": "2"}]
    first = next(iter(Source(str(tmp_path / "X.CSV"))))
    assert first.data == b'{"metadata": {"kind": "1"}, "prompt": "a"}', (
        "a rerun, of any release, knows it by these bytes"
    )


def test_a_table_may_have_semicolons_as_spreadsheets_write_them_where_decimals_have_a_comma(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('\ufeffprompt;kind\r\n"Yes; no";1,5\r\nA, B;2\r\n', newline="")
    rows = [good(one)[1] for one in read(Source(str(tmp_path / "x.csv")), Defaults())]
    assert [(row.prompt, row.metadata) for row in rows] == [("Yes; no", {"kind": "1,5"}), ("A, B", {"kind": "2"})]


def test_a_pipe_is_not_opened_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.jsonl")
    looking = threading.Thread(target=Source(str(pipe)).check, daemon=True)
    looking.start()
    looking.join(20)
    assert not looking.is_alive(), "there is nobody who writes yet"


def test_a_cell_that_is_too_long_is_the_end_of_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"prompt\n{'a' * 1_100_000}\nb\n")
    (_, first), (_, second) = read(Source(str(tmp_path / "x.csv")), Defaults())
    assert isinstance(first, Problem)
    assert (first.code, isinstance(second, InferenceRequest)) == ("too_large", True)


def test_a_row_whose_text_a_comma_has_cut_is_refused_and_empty_cells_harm_none(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"prompt,kind\nHello, world, 1\nb,2,,\ncaf\xe9,3\n")
    cut, whole, latin = read(Source(str(tmp_path / "x.csv")), Defaults())
    assert good(whole)[1].metadata == {"kind": "2"}
    assert isinstance(cut[1], Problem)
    assert isinstance(latin[1], Problem)
    assert "line 1: more cells than the header has" in cut[1].message
    assert "line 3: a text is not UTF-8" in latin[1].message


@pytest.mark.parametrize(
    ("stray", "id"),
    [
        ('b,"open', "b"),
        ('b,"say "hi" to him"', "b"),
        ('"b","open', 2),
    ],
)
def test_a_stray_quote_is_the_end_of_its_row_alone(tmp_path: Path, stray: str, id: str | int) -> None:
    (tmp_path / "x.csv").write_text(f'id,prompt\na,"A, ""B"""\n{stray}\nc,"two\nlines"\n\nd,last\n')
    first, bad, *others = read(Source(str(tmp_path / "x.csv")), Defaults())
    assert good(first)[1].prompt == 'A, "B"'
    assert isinstance(bad[1], Problem)
    assert bad[0].id == id, "as far as it is legible"
    assert [good(one)[1].prompt for one in others] == ["two\nlines", "last"]


def test_a_cell_of_the_wrong_type_is_refused_beside_columns_for_its_parts(tmp_path: Path) -> None:
    rows = 'prompt,metadata,kind,constraints,constraints.lane\na,no,x,no,batch\nb,,x,"{""only"":[""p""]}",batch\n'
    (tmp_path / "x.csv").write_text(rows)
    (_, bad), whole = read(Source(str(tmp_path / "x.csv")), Defaults())
    assert isinstance(bad, Problem)
    _, request = good(whole)
    assert (request.metadata, request.constraints.only, request.constraints.lane) == ({"kind": "x"}, ("p",), "batch")


def test_a_table_that_loses_a_column_is_refused_as_a_whole(tmp_path: Path) -> None:
    for header, told in (("prompt,prompt,,", "two columns are named prompt"), ('prompt,"kind', "its header has")):
        (tmp_path / "x.csv").write_text(f"{header}\na,b,,\n")
        with pytest.raises(SourceError, match=told):
            list(Source(str(tmp_path / "x.csv")))


class Trickle(Source):
    """A pipe whose lines come one by one, each before the last has waited for long."""

    def __iter__(self) -> Iterator[RawLine]:
        for number in range(1, 301):
            yield RawLine(number, b'"A?"', Format.PLAIN)
            time.sleep(0.02)


def test_lines_that_trickle_from_a_pipe_do_not_wait_for_many_more() -> None:
    assert len(list(takewhile(lambda raw: raw is not None, Trickle("-").arriving()))) < 300


def test_a_table_without_a_column_of_prompts_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question,kind\na,1\n")
    parquet.write_table(pyarrow.table({"question": ["a"]}), tmp_path / "x.parquet")
    for name, columns in (("x.csv", "question, kind"), ("x.parquet", "question")):
        with pytest.raises(SourceError, match=f"{name}: no column is named prompt, .* there are '{columns}'"):
            list(Source(str(tmp_path / name)))


def test_a_file_of_which_no_line_could_be_read_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("A?\n".encode("utf-16"))
    with pytest.raises(SourceError, match="is UTF-16; save it as UTF-8"):
        Source(str(tmp_path / "x.txt")).check()


def test_labels_and_tool_calls_are_written_whole_so_that_they_can_be_given_back() -> None:
    called = (ToolCall(id="c", function=FunctionCall(name="f", arguments="{}")),)
    response = InferenceResponse(tool_calls=called, provider="p", model_requested="m", model_served="m")
    result = JobResult(id="j", status=JobStatus.SUCCEEDED, response=response, metadata={"kind": "1"})
    told = json.loads(render(Line(1), result))
    assert told["metadata"] == {"kind": "1"}
    calls = told["response"]["tool_calls"]
    assert Message(role="assistant", tool_calls=calls).tool_calls == called
    assert calls == [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_a_packed_input_is_closed_when_it_has_been_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"A?\n"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert len(list(Source(str(tmp_path / "x.jsonl.gz")))) == 1
    assert not [one for one in warned if "x.jsonl.gz" in str(one.message)]


ZIPPED = gzip.compress(bytes(range(256)) * 50)


@pytest.mark.parametrize("broken", [b"\x1f\x8bno", ZIPPED[:-9], ZIPPED[:60] + b"~~~~" + ZIPPED[64:]])
def test_an_input_that_is_no_gzip_or_cut_off_or_changed_in_its_midst_says_so(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(broken)
    with pytest.raises(SourceError, match=r"can't read .*x.gz"):
        list(Source(str(tmp_path / "x.gz")))
    (tmp_path / "x.jsonl").write_bytes(broken)
    assert Source(str(tmp_path / "x.jsonl")).count() is None, "its good lines are run all the same"


def test_rows_of_a_parquet_file_are_lines_in_order_with_their_types(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "prompt": ["a", None, "c"],
            "id": ["x", "y", "z"],
            "max_output_tokens": [5, 6, None],
            "constraints.only": [["groq"], None, None],
            "seen": [date(2026, 1, 31), None, None],
        }
    )
    file = str(tmp_path / "in.parquet")
    parquet.write_table(table, file)
    first, (_, second), third = read(Source(file), Defaults())
    line, request = good(first)
    assert (line.number, line.custom_id, request.max_output_tokens) == (1, "x", 5)
    assert (request.constraints.only, request.metadata) == (("groq",), {"seen": "2026-01-31"})
    assert isinstance(second, Problem), "a row without a prompt harms no other"
    good(third)
    Path(file).write_bytes(Path(file).read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"can't read .*in.parquet"):
        list(Source(file))


def test_a_row_may_be_as_long_as_a_line_in_any_language(tmp_path: Path) -> None:
    prompt = "转辙器\U0001f600" * 70_000
    (tmp_path / "x.csv").write_text(f"prompt,kind\n{prompt},信\nb\udce9,é\n", errors="surrogateescape")
    (raw, bad) = Source(str(tmp_path / "x.csv"))
    assert good(parse(raw))[1].prompt == prompt
    assert isinstance(asked := parse(bad)[1], Problem)
    assert asked.code == "invalid_request"


def test_nulls_in_the_structs_of_a_parquet_row_and_in_lines_mean_not_given(tmp_path: Path) -> None:
    part = {"type": "text", "text": "Hi", "image_url": None}
    row = {
        "messages": [{"role": "user", "content": [part], "tool_calls": None}],
        "constraints": {"only": None, "max_cost_usd": 0.5},
        "stop": None,
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "in.parquet")
    (one,) = read(Source(str(tmp_path / "in.parquet")), Defaults())
    for _, request in (good(one), good(line({**row, "tools": tools}))):
        assert (request.chat[0].text, request.constraints.max_cost_usd) == ("Hi", 0.5)
    assert request.tools[0].function.parameters == {"default": None}, (
        "what is a vendor's or a schema's is left as it is"
    )


def test_whole_numbers_that_a_data_frame_made_floats_are_whole_again(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a", "b"], "id": [1.0, 2.5], "max_output_tokens": [50.0, None]})
    parquet.write_table(table, tmp_path / "in.parquet")
    first, (_, second) = read(Source(str(tmp_path / "in.parquet")), Defaults())
    line, request = good(first)
    assert (line.id, request.max_output_tokens) == (1, 50)
    assert isinstance(second, Problem)
    (tmp_path / "in.csv").write_text("prompt,max_output_tokens,temperature\na,50.0,1.0\n")
    assert good(next(read(Source(str(tmp_path / "in.csv")), Defaults())))[1].max_output_tokens == 50


def test_texts_that_parquet_has_as_bytes_are_texts(tmp_path: Path) -> None:
    columns = {
        "prompt": ["Grüße".encode(), b"\xff"],
        "model": [b"m", b"m"],
        "topic": ["Züge".encode(), b"b"],
        "hash": [b"\xff", b""],
        "constraints.only": [b'["p"]', None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    first, (_, second) = read(Source(str(tmp_path / "in.parquet")), Defaults())
    request = good(first)[1]
    assert (request.prompt, request.model, request.constraints.only) == ("Grüße", "m", ("p",))
    assert request.metadata == {"topic": "Züge", "hash": "\\xff"}
    assert isinstance(second, Problem)


def test_a_cell_may_list_acceptable_models(tmp_path: Path) -> None:
    (file := tmp_path / "in.csv").write_text('prompt,model\na,"[""m"",""n-4.1""]"\nb,n-4.1\n')
    requests = [good(one)[1] for one in read(Source(str(file)), Defaults())]
    assert [request.model for request in requests] == [("m", "n-4.1"), "n-4.1"]


def test_a_tally_counts_answers_with_warnings() -> None:
    tally = Tally()
    warned = ANSWER.model_copy(update={"warnings": ("p does not support seed; it was dropped", "another")})
    for response in (ANSWER, warned):
        tally.count(numbers_of(DONE.model_copy(update={"response": response})))
    assert tally.warned == 1


def test_a_tally_knows_who_failed_and_who_took_over() -> None:
    tally = Tally()
    tally.count(numbers_of(DONE))
    tally.pay(numbers_of(DONE))
    assert (tally.finished, tally.failed, tally.failovers, tally.cost_microusd, tally.unsure_microusd) == (
        1,
        0,
        1,
        7,
        3,
    )
    assert (tally.providers["p"].jobs, tally.providers["p"].failovers_in) == (1, 1)
    assert (tally.providers["q"].failures, tally.providers["q"].failovers_out) == (1, 1)
    assert tally.providers["p"].latency(0.5) == 0.5
    tally.count(numbers_of(DONE), -1)
    assert (tally.finished, tally.providers["p"].latency(0.5)) == (0, None)
    assert tally.cost_microusd == 7, "what was spent stays spent"
