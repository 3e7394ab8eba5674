"""Mistakes put into the scripts one at a time: does anything notice? `python -m tests.properties.ledger.mutants`

Each mutant is shown to the walk of one job, to the facts, and to the walk of two jobs, until one of them fails.
What survives is a hole in the tests.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoScriptError, ResponseError
from tests import redis_server
from tests.properties.ledger import test_lanes as lanes
from tests.properties.ledger.bed import Bed, Mutant
from tests.properties.ledger.test_walk import walk
from tests.unit.ledger import test_facts, test_parked

MUTANTS = [
    Mutant("claim", "if state ~= 'queued' then return {state} end", ""),
    Mutant("claim", "token = token + 1", ""),
    Mutant("claim", "redis.call('ZREM', (lane_keys(lane)), ARGV[1])", ""),
    Mutant("claim", "NOW + ARGV[3]", "NOW"),
    Mutant("claim", "if version ~= VERSION then return {'unknown_version'} end", ""),
    Mutant("enqueue", "known == fingerprint", "true"),
    Mutant("enqueue", "if known then", "if false then"),
    Mutant("enqueue", "ARGV[6] == '1' and", ""),
    Mutant("enqueue", "or 'cancelled') ==", "or '') =="),
    Mutant("close_account", "or state == 'queued'", ""),
    Mutant("close_account", "return is_held(state) or", "return"),
    Mutant("enqueue", "NOW + within < deadline", "NOW + within > deadline"),
    Mutant("enqueue", "deadline <= NOW", "deadline < NOW"),
    Mutant("enqueue", "redis.call('EXISTS', KEYS.intake) == 1", "false"),
    Mutant("enqueue", "if deadline > 0 then redis.call('ZADD', KEYS.deadlines, deadline, id) end", ""),
    Mutant("renew", "is_held(state) and current == token", "current == token"),
    Mutant("renew", "is_held(state) and current == token", "is_held(state)"),
    Mutant("renew", "KEYS[i], 'state'", "KEYS[2], 'state'"),
    Mutant("members_due", "'-inf', NOW", "'-inf', '(' .. NOW"),
    Mutant("members_due", "'-inf', NOW", "'-inf', '+inf'"),
    Mutant("requeue", "or token ~= current", ""),
    Mutant("requeue", "not is_held(state) or", ""),
    Mutant("requeue", "redis.call('ZREM', KEYS.job_leases, id)", ""),
    Mutant("requeue", "publish(ARGV[1], true)", "publish(ARGV[1])"),
    Mutant("park", "or token ~= current", ""),
    Mutant("park", "redis.call('ZREM', KEYS.job_leases, id)", ""),
    Mutant("wake", "> NOW then return 0 end", ">= NOW then return 0 end"),
    Mutant("wake", "redis.call('ZREM', KEYS.parked, member)", ""),
    Mutant("wake", "redis.call('ZADD', KEYS.delayed, NOW + ARGV[2], group_of(member))", ""),
    Mutant("wake", "unpark(member)\npublish", "publish"),
    Mutant("wake", "redis.call('ZREM', KEYS.delayed, group)", ""),
    Mutant("park", "head_of(group) == member and", ""),
    Mutant("park", "and redis.call('ZSCORE', KEYS.delayed, group) ~= '0'", ""),
    Mutant("park", "job_fields('accepted_ms')", "NOW"),
    Mutant("due_heads", "'-inf', NOW", "'-inf', '+inf'"),
    Mutant("make_groups_due", "ZADD', KEYS.delayed, 0", "ZADD', KEYS.delayed, NOW"),
    Mutant("sweep", "KEYS.job_leases, id)) <= NOW", "KEYS.job_leases, id)) < NOW"),
    Mutant("sweep", "points >= tonumber", "points > tonumber"),
    Mutant("sweep", "lives and 1 or ARGV[2]", "ARGV[2]"),
    Mutant("sweep", "'crashes', points, ", ""),
    Mutant("sweep", "'(' .. since", "since"),
    Mutant("sweep", "starts_with(seen, worker .. ' ')", "starts_with(seen, worker)"),
    Mutant("sweep", "redis.call('ZREM', KEYS.job_leases, id)\npublish", "publish"),
    Mutant("settle", "if not is_live(state) then", "if false then"),
    Mutant("settle", "status ~= 'succeeded' or tonumber(token) < 1 or", "tonumber(token) < 1 or"),
    Mutant("settle", "tonumber(token) < 1 or", ""),
    Mutant("settle", "or tonumber(token) > tonumber(current) then", "then"),
    Mutant("settle", "outcome = 'salvaged'", ""),
    Mutant("settle", "tonumber(deadline) > NOW then", "tonumber(deadline) >= NOW then"),
    Mutant("settle", "if is_held(state) or deadline == '0'", "if deadline == '0'"),
    Mutant("settle", "KEYS.job_leases, id)) <= NOW", "KEYS.job_leases, id)) < NOW"),
    Mutant("settle", "if is_held(state) then redis.call('ZREM', KEYS.job_leases, id) end", ""),
    Mutant("settle", "if member then unpark(member) end", ""),
    Mutant("settle", "if deadline ~= '0' then redis.call('ZREM', KEYS.deadlines, id) end", ""),
    Mutant("settle", "if state == 'queued' then redis.call('ZREM', (lane_keys(lane)), id) end", ""),
    Mutant("settle", "if (own_batch or '') ~= batch then", "if false then"),
    Mutant("settle", "redis.call('PEXPIRE', KEYS.job, ttl)", ""),
    Mutant("settle", "redis.call('PEXPIRE', KEYS.story, ttl)", ""),
    Mutant("settle", "redis.call('HINCRBY', KEYS.counts, status, 1)", ""),
    Mutant("settle", "redis.call('SET', KEYS.result", "redis.call('SET', KEYS.result .. 'x'"),
    Mutant("settle", "redis.call('RPUSH', KEYS.done, id)", ""),
    Mutant("settle", "redis.call('HINCRBY', KEYS.batch, status, 1)", ""),
    Mutant("settle", "if kept * 1000 > ttl then ttl = kept * 1000 end", ""),
    Mutant("settle", "notify(watchers, id)", ""),
    Mutant("settle", "if starts_with(inbox, of_clients) then", "if true then"),
    Mutant("settle", "'LPUSH', queue, message", "'LPUSH', lane, message"),
    Mutant("settle", "redis.call('ZREMRANGEBYSCORE', KEYS.failed, '-inf', NOW)", ""),
    Mutant("settle", "if version ~= VERSION then return {'refused', state} end", ""),
    Mutant("watch", "' ' .. ARGV[1] .. ' '", "ARGV[1]"),
    Mutant("watch", "if ARGV[2] == '1' then add('readers', readers) end", "add('readers', readers)"),
    Mutant("stream", "notify(job_fields('readers'), '+' .. ARGV[1])", ""),
    Mutant("without_message", "'(' .. before", "'+inf'"),
    Mutant("without_message", "math.min(front, ARGV[2])", "front"),
    Mutant("without_message", "math.min(front, ARGV[2])", "ARGV[2]"),
    Mutant("republish", ">= tonumber(ARGV[2])", "> tonumber(ARGV[2])"),
    Mutant("republish", "if not position or tonumber(position) >= tonumber(ARGV[2]) then return 0 end", ""),
    Mutant("republish", "if version ~= VERSION then return 0 end", ""),
    Mutant("republish", "(2 ^ math.min(times - 1, 10) - 1)", "0"),
    Mutant("replay", "redis.call('PERSIST', KEYS.job)", ""),
    Mutant("replay", "'deadline_ms', 0, 'progress', ''", "'progress', ''"),
    Mutant("replay", "'accepted_ms', NOW, 'queued_ms'", "'queued_ms'"),
    Mutant("replay", "redis.call('ZREM', KEYS.failed, ARGV[1])", ""),
    Mutant("replay", "redis.call('DEL', KEYS.result, KEYS.stream)", ""),
    Mutant("purge", "or state == 'queued'", ""),
    Mutant("purge", "return is_held(state) or", "return"),
    Mutant("enqueue", "redis.call(at_front and 'RPUSH' or 'LPUSH', queue, message)", ""),
    Mutant("settle", "if authority ~= 'token' then", "if not by_worker then"),
    Mutant("settle", "redis.call('HSET', KEYS.job, 'unheard', 1)", ""),
    Mutant("settle", "if state ~= 'queued' then push(id) end", ""),
    Mutant("settle", "if state ~= 'queued' then push(id) end", "push(id)"),
    Mutant("take_end", "redis.call('HSET', KEYS.job, 'unheard', 0)", ""),
    Mutant("take_end", "redis.call('HSET', KEYS.job, 'unheard', 0)", "redis.call('HDEL', KEYS.job, 'unheard')"),
    Mutant("replay", "'settled_token', 'unheard', 'hook_tries'", "'settled_token', 'hook_tries'"),
    Mutant("requeue", "at_front and front_position(pending, queue) or NOW", "NOW"),
    Mutant("wake", "at_front and front_position(pending, queue) or NOW", "NOW"),
    Mutant("claim", "redis.call('HDEL', KEYS.job, 'republished')", ""),
    Mutant("claim", "owner == ARGV[2] and claim == ARGV[4]", "owner == ARGV[2]"),
    Mutant("claim", "owner == ARGV[2] and claim == ARGV[4]", "claim == ARGV[4]"),
    Mutant("claim", "state == 'leased' and owner", "state ~= 'queued' and owner"),
    Mutant("claim", "redis.call('ZADD', KEYS.job_leases", "redis.call('ZADD', KEYS.job_leases, 'XX'"),
    Mutant("park", "'ZADD', KEYS.delayed", "'ZADD', KEYS.delayed, 'LT'"),
    Mutant("park", "'ZADD', KEYS.delayed", "'ZADD', KEYS.delayed, 'XX'"),
    Mutant("without_message", "position or lowest or NOW", "position or lowest or 0"),
    Mutant("requeue", "position or lowest or NOW", "position or NOW"),
    Mutant("requeue", "math.min(NOW, position or lowest or NOW)", "position or lowest or NOW"),
    Mutant("without_message", '"place":%s*', '"place":'),
    Mutant("replay", "not (state == 'failed' or", "not (state == 'succeeded' or state == 'failed' or"),
    Mutant("settle", "or settled_token ~= token then", "or true then"),
    Mutant("settle", "redis.call('HDEL', KEYS.job, 'unheard')", ""),
    Mutant("settle", "job_fields('unheard') == '0'", "false"),
    Mutant("settle", "if by_worker then gone[#gone + 1] = 'progress' end", ""),
    Mutant("settle", "redis.call('ZADD', KEYS.failed, NOW + ttl, id)", ""),
]
"""Of each kind: a check left out, an edge moved by one, an index or a lifetime forgotten, somebody not told."""
ENOUGH = 0.95


CAUGHT = (AssertionError, AttributeError, TypeError, ResponseError, pytest.fail.Exception)
"""What a check raises that notices: also on a reply it can't read, or a script that breaks down."""


def caught_by(url: str, mutant: Mutant) -> str:
    """The check that noticed the mutant; empty: none did."""
    for name, check in checks(url, mutant):
        try:
            check()
        except NoScriptError:
            raise
        except CAUGHT:
            return name
    return ""


def checks(url: str, mutant: Mutant) -> Iterator[tuple[str, Callable[[], object]]]:
    """All there are, the quick ones first."""
    yield "walk", lambda: walk(Bed(url, mutant), claims=1)
    for name, fact in (vars(test_facts) | vars(test_parked)).items():
        if name.startswith("test_") and name != "test_redis_itself_keeps_the_time":
            for case in cases(fact):
                yield name, partial(fact, Bed(url, mutant), *case)
    yield "longer walk", lambda: walk(Bed(url, mutant), claims=2)
    yield "two jobs and their messages", lambda: lanes.walk(Bed(url, mutant), most=1000)


def cases(fact: Any) -> list[tuple[Any, ...]]:
    """The arguments that pytest would call it with, after the bed."""
    marks = getattr(fact, "pytestmark", [])
    return [case if isinstance(case, tuple) else (case,) for mark in marks for case in mark.args[1]] or [()]


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        server = redis_server.start(Path(directory))
        try:
            caught = 0
            for mutant in MUTANTS:
                began = time.monotonic()
                by = caught_by(server.url, mutant)
                caught += bool(by)
                print(f"{by or 'SURVIVED':45} {time.monotonic() - began:5.1f} s  {mutant}", flush=True)
        finally:
            server.stop()
    print(f"{caught} of {len(MUTANTS)} caught")
    return int(caught < ENOUGH * len(MUTANTS))


if __name__ == "__main__":
    sys.exit(main())
