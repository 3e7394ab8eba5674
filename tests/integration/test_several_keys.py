"""Several keys of one provider are accounts: each has limits of its own, and one that is refused is out alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.chaos.fleet import one_provider
from tests.chaos.stand import standing

LIMIT = 20
FLEET = one_provider(api_key=["key-one", "key-two"], requests_per_minute=LIMIT)


def test_two_keys_do_more_than_the_limit_of_one_and_neither_passes_its_own(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, lease_s=30.0) as stand:
        keys = '["key-one", "key-two", "key-bad"]'
        stand.config.write_text(stand.config.read_text().replace('["key-one", "key-two"]', keys))
        stand.start_worker()
        ids = [f"j{number}" for number in range(LIMIT + 10)]
        stand.submit(ids)
        stand.until(lambda: stand.outcomes(ids) == {"succeeded": len(ids)}, 90)
        attempts = [attempt for result in stand.results(ids) if result for attempt in result.attempts]
        calls = Counter((attempt.endpoint.partition("#")[2], attempt.failure) for attempt in attempts)
        told = stand.oracle()
    answered = {account: count for (account, failure), count in calls.items() if failure is None}
    assert answered.keys() == {"", "2"}
    begun_at = [attempt.started_at for attempt in attempts]
    assert max(answered.values()) <= LIMIT * (1 + (max(begun_at) - min(begun_at)) / 60)
    assert {failure for (account, failure) in calls if account == "3"} <= {"unauthorized"}
    assert "429" not in told["providers"]["sim"]["statuses"]
    assert sum(job["answered"] for job in told["jobs"].values()) == len(ids)
