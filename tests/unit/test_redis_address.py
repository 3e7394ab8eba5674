"""Redis's password from a file, and addresses of sentinels."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from kombu.utils.url import parse_url
from redis.exceptions import ResponseError
from tests import redis_server as servers

from turnout.errors import TurnoutError
from turnout.redis_address import Sentinels, checked, connect, place, sentinels, with_password
from turnout.redis_trouble import explain
from turnout_workers.celery_app import celery_app, celery_settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://worker@redis:6379/0", "redis://worker:p%40ss%2F@redis:6379/0"),
        ("redis://redis:6379", "redis://:p%40ss%2F@redis:6379"),
        ("redis://w:@redis", "redis://w:p%40ss%2F@redis"),
        ("rediss://w@h:1/2?ssl_cert_reqs=required", "rediss://w:p%40ss%2F@h:1/2?ssl_cert_reqs=required"),
        ("sentinel://w@s1:26379,s2/jobs/0", "sentinel://w:p%40ss%2F@s1:26379,s2/jobs/0"),
        ("sentinel://s1,[fd00::7]:1/jobs", "sentinel://:p%40ss%2F@s1,[fd00::7]:1/jobs"),
    ],
)
def test_the_files_content_becomes_the_password(tmp_path: Path, url: str, expected: str) -> None:
    (tmp_path / "secret").write_text("p@ss/\n")
    environ = with_password({"REDIS_URL": url, "REDIS_PASSWORD_FILE": str(tmp_path / "secret")})
    assert environ["REDIS_URL"] == expected


@pytest.mark.parametrize("url", ["", "redis://worker:known@redis:6379/0", "unix:///run/redis.sock"])
def test_an_address_that_cannot_take_it_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret").write_text("never-shown")
    with pytest.raises(TurnoutError, match="needs a REDIS_URL without a password") as refused:
        with_password({"REDIS_URL": url, "REDIS_PASSWORD_FILE": str(tmp_path / "secret")})
    assert "never-shown" not in str(refused.value)


@pytest.mark.parametrize(
    ("same", "told"),
    [
        (
            ("redis://h", "redis://h:6379", "redis://H/", "redis://u:pw@h/0", "rediss://h:6379/0?ssl_cert_reqs=none"),
            "h:6379/0",
        ),
        (("redis://", "redis://localhost"), "localhost:6379/0"),
        (("redis://h:1/15",), "h:1/15"),
        (("sentinel://u:pw@b,a:1/jobs", "sentinel://a:1,b:26379/jobs/0?password=pw"), "a:1,b:26379/jobs/0"),
    ],
)
def test_a_server_and_its_database_have_one_name_however_the_address_is_written(
    same: tuple[str, ...], told: str
) -> None:
    assert {place(checked(url)) for url in same} == {told}


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(TurnoutError, match="/nowhere"):
        with_password({"REDIS_URL": "redis://redis", "REDIS_PASSWORD_FILE": "/nowhere"})


def test_without_a_file_nothing_changes() -> None:
    assert with_password({"REDIS_URL": "redis://x"}) == {"REDIS_URL": "redis://x"}


@pytest.mark.parametrize(
    "url",
    [
        "redis",
        "htp://h",
        "redis://w:zq/zq@h:1/0",
        "redis://h:70000",
        "redis://h:0",
        "REDIS://h",
        "redis://h:1/15/",
        "redis://h//15",
        "redis://h/٣",
        "unix:///zq/b.sock",
        "redis://w:zq@h?decode_responses=True",
        "redis://w:zq@h?db=2",
        "redis://h?username=w&password=zq",
        "redis://h?socket_timeout=3",
        "redis://h?ssl_cert_reqs=none",
        "redis://w:zq@h?nonsense",
        "rediss://w:zq@h?health_check_interval=5",
        "rediss://w:zq@h?ssl_cert_reqs=none&ssl_nonsense=zq",
        "rediss://h?ssl_check_hostname=0",
        "rediss://h?ssl_ca_certs=",
        "redis://w:zq@zq/zq@h/0",
        "redis://w:12#zq@h/0",
        "redis://h/zq",
        "rediss://h?ssl_cert_reqs=CERT_REQUIRED",
        "sentinel://w:zq/zq@h",
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|names) ") as refused:
        checked(url)
    assert "zq" not in str(refused.value)


@pytest.mark.parametrize("database", ["", "/", "/0", "/15"])
def test_an_address_of_redis_is_taken_as_it_is_and_celery_takes_it_too(
    redis_server: servers.Server, database: str
) -> None:
    url = f"redis://127.0.0.1:{redis_server.port}{database}"
    assert checked(url) == url
    app = celery_app(url)
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1)
        assert connection.default_channel.client.ping()
    assert app.backend.client.ping()


def test_sentinels_are_read_from_one_address_that_hides_its_passwords() -> None:
    found = sentinels("sentinel://w:p%40ss@s1:5000,s2,[::1]:7/jobs/2?password=guard")
    assert found == Sentinels(
        nodes=(("s1", 5000), ("s2", 26379), ("::1", 7)),
        service="jobs",
        database=2,
        login={"username": "w", "password": "p@ss"},
        sentinel_login={"password": "guard"},
    )
    assert "p@ss" not in repr(found)
    assert "guard" not in repr(found)


def test_celery_asks_sentinels_by_their_ipv6_addresses() -> None:
    nodes = celery_settings("sentinel://w:p%40ss@[fd00::7],s2/jobs/2")["broker_url"].split(";")
    assert [parse_url(node)["hostname"] for node in nodes] == ["fd00::7", "s2"]


@pytest.mark.parametrize(
    "url",
    ["sentinel://s1", "sentinel://s1/jobs/x", "sentinel://s1,/jobs", "sentinel://s1:no/jobs", "sentinel://s1/j?ssl=1"],
)
def test_an_address_of_sentinels_that_is_wrong_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be sentinel://|is not host"):
        sentinels(url)


def test_of_a_redis_before_7_it_is_said_that_it_is_too_old() -> None:
    """It knows no `#!lua`, and this is what it says of one."""
    told = ResponseError("Error compiling script (new function): user_script:1: unexpected symbol near '#'")
    assert "7.0 or newer is needed" in explain(told)


def test_what_redis_says_is_told_without_the_command_which_may_hold_a_prompt() -> None:
    said = "Command # 1 (RPUSH {turnout}:batch:b:input x\x9csecret) of pipeline caused error: "
    full = redis.exceptions.OutOfMemoryError(said + "command not allowed when used memory > 'maxmemory'.")
    assert explain(full).startswith("Redis takes no writes now (command not allowed when used memory")
    assert explain(redis.ResponseError(said + "MISCONF Redis is configured …")).startswith("Redis takes no writes now")
    assert explain(redis.ResponseError(said + "ERR wrong")) == "Redis says: ERR wrong"


def test_a_redis_that_does_not_answer_by_tls_is_told_with_its_address(redis_server: servers.Server) -> None:
    where = f"127.0.0.1:{redis_server.port}/0"
    client = connect(f"rediss://:zq@{where}", socket_connect_timeout=0.2, retry=servers.ONCE)
    with client, pytest.raises(redis.RedisError) as found:
        client.ping()
    assert explain(found.value).startswith(f"Redis at rediss://{where} can't be reached (")
    assert "zq" not in explain(found.value)
