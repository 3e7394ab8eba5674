"""Streamed answers, from a real worker to real readers."""

from __future__ import annotations

import pytest
from tests.chaos.stand import Stand

from turnout import AsyncClient, Cancelled, Client, Failed, Restarted

FLEET = """
output_tokens = 30
[providers.sim-first]
ttft_s = 0.05
s_per_token = 0.02
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
[providers.sim-second]
kind = "anthropic"
models."llama-3.3-70b" = { input_usd_per_mtok = 5.0, output_usd_per_mtok = 5.0 }
[providers.sim-third]
kind = "gemini"
s_per_token = 0.01
models."other" = { input_usd_per_mtok = 5.0, output_usd_per_mtok = 5.0 }
"""


@pytest.mark.parametrize("model", ["llama-3.3-70b", "other"])
def test_pieces_come_one_by_one_and_make_the_answer(client: Client, model: str) -> None:
    job = client.submit("Tell me.", model=model, stream=True)
    pieces = list(job.stream())
    assert len(pieces) > 1
    assert "".join(pieces) == job.wait().text
    assert "".join(job.stream()) == job.wait().text, "a reader that comes late has all of it"


async def test_who_waits_for_a_piece_is_given_an_empty_one_now_and_then(stand: Stand) -> None:
    async with AsyncClient(stand.redis.url, "nobody-serves-this") as lonely:
        job = await lonely.submit("Tell me.", stream=True)
        stream = job.stream(idle_s=0.05)
        assert [await anext(stream), await anext(stream)] == ["", ""]
        with Client(stand.redis.url, "nobody-serves-this") as client:
            stream_too = client.job(job.id).stream(idle_s=0.05)
            assert [next(stream_too), next(stream_too)] == ["", ""]
            assert client.job(job.id).cancel()
            with pytest.raises(Cancelled):
                list(stream_too)
        with pytest.raises(Cancelled):
            await anext(stream)


def test_a_failover_in_mid_stream_is_told_and_the_answer_begins_anew(stand: Stand, client: Client) -> None:
    stand.fail("sim-first", kind="truncate", for_requests=3)
    job = client.submit("Tell me.", model="llama-3.3-70b", stream=True, constraints={"order": ["sim-first"]})
    pieces = list(job.stream())
    restarts = [index for index, piece in enumerate(pieces) if isinstance(piece, Restarted)]
    assert restarts
    assert "".join(pieces[: restarts[0]]) != ""
    assert "".join(pieces[restarts[-1] :]) == job.wait().text
    told = [(one["event"], one.get("to") or one.get("from")) for one in job.events() if one["event"] != "claimed"]
    first, second = "sim-first/llama-3.3-70b", "sim-second/llama-3.3-70b"
    assert told[0] == ("queued", None)
    assert told[-4:] == [("routed", first), ("failed_over", first), ("routed", second), ("succeeded", None)]


@pytest.mark.parametrize("lost", [slice(1), slice(1, 2), slice(2, 3), slice(-2, -1), slice(1, None)])
def test_where_pieces_were_lost_the_reader_has_the_whole_answer_all_the_same(
    stand: Stand, client: Client, lost: slice
) -> None:
    """As while Redis is away for a moment, or where a result came from a call that began before the last one."""
    job = client.submit("Tell me.", model="llama-3.3-70b", stream=True, constraints={"only": ["sim-first"]})
    answer, stream = job.wait().text, stand.ledger.keys.stream(job.id)
    entries = [entry for entry, _ in stand.client.xrange(stream)]
    stand.client.xdel(stream, *entries[lost])
    shown = ""
    for piece in job.stream():
        shown = "" if isinstance(piece, Restarted) else shown + piece
    assert shown == answer


def test_a_job_that_does_not_stream_gives_its_answer_in_one_piece(client: Client) -> None:
    job = client.submit("Tell me.", model="llama-3.3-70b")
    assert list(job.stream()) == [job.wait().text]


def test_a_stream_whose_job_fails_ends_with_its_error(client: Client) -> None:
    with pytest.raises(Failed):
        list(client.submit("Tell me.", model="nobody's", stream=True).stream())
