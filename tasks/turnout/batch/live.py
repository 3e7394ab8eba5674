"""The live jobs of a `turnout run`, of which Redis has no record: they are found among all jobs that there are."""

from __future__ import annotations

import redis

from turnout.ledger import Ledger, run
from turnout.ledger.operations import texts

PAGE = 500


def cancel_live(client: redis.Redis, ledger: Ledger, batch: str) -> int:
    """Cancel what is queued, parked or in flight of a batch. Returns how many jobs that were."""
    keys = ledger.keys
    with client.pipeline() as pipe:  # at one moment, for a job goes from one index to the next
        for index in (*keys.all_pending, keys.in_line, keys.parked, keys.leases):
            pipe.zrange(index, 0, -1)
        members = [member for found in pipe.execute() for member in texts(found)]
    ids = list(dict.fromkeys(member.rpartition(" ")[2] for member in members))  # of a spot or turn it stands last
    cancelled = 0
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        facts = zip(page, run(client, [ledger.facts(id) for id in page]), strict=True)
        ours = [id for id, job in facts if job is not None and job.batch == batch]
        ended = run(client, [ledger.cancel(id, batch) for id in ours])
        cancelled += sum(one.accepted for one in ended)
    return cancelled
