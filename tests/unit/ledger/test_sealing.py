"""Keys that seal what lies in Redis: which of them opens what, and what is said when none does."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import pytest
from tests.properties.ledger.bed import CLOCK_KEY, KEPT_S, Bed

from turnout.errors import TurnoutError, Unreadable
from turnout.ledger import Keyring, Ledger, NotClaimed
from turnout.request import InferenceRequest, InferenceResponse
from turnout.result import JobResult, JobStatus

OLD, NEW, OTHER_OLD = (
    f"{name}:{base64.b64encode(bytes([n] * 32)).decode()}" for n, name in enumerate(("old", "new", "old"), 1)
)


def ring(*entries: str) -> Keyring:
    return Keyring.of({"TURNOUT_PAYLOAD_KEYS": " ".join(entries)})


def test_the_first_key_seals_and_all_open() -> None:
    sealed = ring(OLD).seal("here", b"secret")
    assert b"secret" not in sealed
    assert ring(NEW, OLD).open("here", sealed) == b"secret"
    assert ring(OLD, NEW).seal("here", b"secret").startswith(b"sealed:old#")
    assert ring(OLD).seal("here", b"secret") != sealed, "the same twice is not seen to be the same"


def test_without_keys_nothing_is_sealed_and_with_them_what_was_not_is_still_read() -> None:
    assert ring().seal("here", b"open") == b"open"
    assert ring(OLD).open("here", b"open") == b"open"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ((), r"here: sealed with the key old#\w{8}, and TURNOUT_PAYLOAD_KEYS is not set; add that key"),
        ((NEW,), r"the key old#\w{8}, and TURNOUT_PAYLOAD_KEYS has new#\w{8}; add"),
        ((OTHER_OLD,), r"the key old#\w{8}, and TURNOUT_PAYLOAD_KEYS has old#\w{8}; add"),
    ],
)
def test_a_missing_key_is_named_also_where_another_has_its_id(keys: tuple[str, ...], told: str) -> None:
    with pytest.raises(Unreadable, match=told) as raised:
        ring(*keys).open("here", ring(OLD).seal("here", b"secret"))
    assert raised.value.key
    assert raised.value.key not in ring(*keys).refs


def test_what_is_sealed_opens_in_its_place_alone_and_unchanged() -> None:
    sealed = ring(OLD).seal("request of job a", b"secret")
    for place, stored in [
        ("request of job b", sealed),
        ("answer of job a", sealed),
        ("request of job a", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        ("request of job a", sealed[:25]),
    ]:
        with pytest.raises(Unreadable, match="was changed, or sealed under another name"):
            ring(OLD).open(place, stored)


@pytest.mark.parametrize("entry", ["c2VjcmV0", "a:c2VjcmV0", "a:" + "!" * 44, "a b:" + OLD[4:], OLD[4:]])
def test_what_is_no_key_is_refused_by_its_number_and_never_shown(entry: str) -> None:
    with pytest.raises(TurnoutError, match=r"TURNOUT_PAYLOAD_KEYS, entry 2: must be ID:BASE64 of 32") as raised:
        ring(NEW, entry)
    assert entry.split(":")[-1] not in str(raised.value)


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{NEW}\n{OLD}\n")
    assert [ref.split("#")[0] for ref in Keyring.of({"TURNOUT_PAYLOAD_KEYS_FILE": str(file)}).refs] == ["new", "old"]
    file.write_text("\n")
    for path, told in [(file, "holds no key"), (tmp_path / "none", "can't be read: FileNotFoundError")]:
        with pytest.raises(TurnoutError, match=told):
            Keyring.of({"TURNOUT_PAYLOAD_KEYS_FILE": str(path)})


def test_nothing_prints_a_key() -> None:
    keyring = ring(OLD)
    assert OLD[4:] not in repr(vars(keyring))
    assert repr(bytes([1] * 32)) not in repr(vars(keyring))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(TurnoutError, match=r"pip install 'turnout\[encryption\]'"):
        ring(OLD)
    assert not ring(), "without keys nobody needs it"


def everything(bed: Bed) -> dict[bytes, bytes | None]:
    return {key: bed.client.dump(key) for key in bed.client.scan_iter() if key != CLOCK_KEY.encode()}


def test_a_job_that_a_worker_cannot_read_is_left_to_those_who_can(redis_url: str) -> None:
    bed = Bed(redis_url)
    lacking, bed.ledger.keyring = Ledger(bed.keys, keyring=ring(NEW)), ring(OLD)
    bed.enqueue(payload='{"prompt":"secret"}')
    before = everything(bed)
    assert bed(lacking.claim("a", "w", 30)) == NotClaimed("unknown_key", bed.ledger.keyring.ref or "")
    assert bed(Ledger(bed.keys).claim("a", "w", 30)).state == "unknown_key"
    assert everything(bed) == before
    bed.ledger.keyring = ring(NEW, OLD)
    assert bed.claimed().request == InferenceRequest(prompt="secret")
    bed.close()


def test_who_has_no_key_reads_how_a_job_ended_but_not_its_answer(redis_url: str) -> None:
    bed = Bed(redis_url)
    bed.ledger.keyring = ring(OLD)
    bed.enqueue(metadata={"ticket": "7"}, webhook="app")
    answer = InferenceResponse(text="yes", provider="p", model_requested="m", model_served="m")
    done = JobResult(id="a", status=JobStatus.SUCCEEDED, response=answer)
    bed(bed.ledger.settle(bed.claimed().token, done, None, KEPT_S))
    result = bed(bed.ledger.result("a"))
    assert result.response == answer
    assert result.metadata == {"ticket": "7"}
    due = bed(bed.ledger.due_webhooks(1))[0]
    delivery = bed(bed.ledger.take_webhook(due, (0,)))
    assert delivery.result == result
    lacking = Ledger(bed.keys)
    with pytest.raises(Unreadable, match="of job a"):
        bed(lacking.take_webhook(delivery.due_again, (0,)))
    with pytest.raises(Unreadable, match="of job a"):
        bed(lacking.result("a"))
    told = bed(lacking.result("a", content=False))
    assert (told.response.text, told.metadata) == ("", {})
    assert told.summary() == result.summary()
    bed.close()
