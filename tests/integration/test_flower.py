"""The real Flower watches a real worker: each job tells its story there, and nothing of what was asked or answered."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.flower import Flower, flower
from tests.integration.test_main_job import until
from tests.tools import program

from turnout import Client
from turnout_workers import local
from turnout_workers.commands.flower import flower as flower_command

SECRET = "xyzzy-plugh-4711"


@pytest.fixture(scope="module")
def watching(here: local.Local, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    with flower(tmp_path_factory.mktemp("flower"), here.environ) as watching:
        watching.until(lambda: watching.has_heard_of(f"turnout-{os.getpid()}-1@"))
        yield watching


def test_flower_shows_the_story_and_no_content(here: local.Local, watching: Flower) -> None:
    get = watching.get
    with Client(here.redis_url) as client:
        job = client.submit(f"Remember {SECRET}", model="llama-3.3-70b", metadata={"note": SECRET})
        answer = job.wait(60)
        refused = client.submit(f"Refuse {SECRET}", constraints={"only": ["nobody"]})
        until(lambda: refused.status() == "failed", 60)
    until(lambda: '"SUCCESS"' in get("/api/tasks") and '"FAILURE"' in get("/api/tasks"))
    told = json.loads(get("/api/tasks"))
    shown = told[job.id]
    assert shown["name"] == "turnout.infer"
    assert shown["args"] == "interactive · llama-3.3-70b"
    assert shown["result"].startswith(f"{answer.provider} · llama-3.3-70b · ")
    assert "simulated" in shown["result"]
    row = json.loads(get("/tasks/datatable?draw=1&start=0&length=9&search[value]=state:FAILURE&order[0][column]=0"))
    assert "no endpoint can serve this job" in row["data"][0]["result"], "the reason is the result of a job that failed"
    endpoint = f"{answer.provider}/llama-3.3-70b"
    told = {one["endpoint"]: one for one in json.loads(get("/api/providers"))["endpoints"]}
    assert told[endpoint]["calls"] >= 1
    assert told[endpoint]["p50_s"] is not None
    paths = ("/api/tasks", f"/api/task/info/{job.id}", f"/task/{job.id}", "/tasks", "/workers", "/providers")
    pages = [get(path) for path in paths]
    assert all(pages)
    worker_log = Path(here.environ["TURNOUT_SPOOL"]).with_name("worker-1.log")
    for text in (*pages, watching.process.said, worker_log.read_text()):
        assert SECRET not in text
        assert answer.text not in text
    assert os.environ.get("REDIS_URL") is None


def test_flower_says_that_redis_is_away_and_stops_nevertheless(here: local.Local, port: int, tmp_path: Path) -> None:
    with flower(tmp_path, {**here.environ, "REDIS_URL": f"redis://127.0.0.1:{port}/0"}) as lonely:
        button = {"endpoint": "sim-swift/llama-3.3-70b", "action": "isolated", "_xsrf": "ab"}
        for form in (None, urllib.parse.urlencode(button).encode()):
            request = urllib.request.Request(f"{lonely.url}/providers", form, {"Cookie": "_xsrf=ab"})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=30)
            assert refused.value.code == 503
            assert refused.value.read().startswith(b"Redis at redis://127.0.0.1:%d/0 can't be reached" % port)
        lonely.process.terminate()
        assert lonely.process.wait(60) == 0


BROWSER = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1280,900 --virtual-time-budget=3000"
)


def looked_at(url: str, picture: Path) -> str:
    """The page as a browser has it once its scripts have run; a picture of it is left in `picture`."""
    chromium = program("chromium", "chromium")
    flags = [*BROWSER.split(), f"--user-data-dir={picture.with_suffix('')}", f"--screenshot={picture}", "--dump-dom"]
    return subprocess.run([chromium, *flags, url], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_pages_as_a_browser_shows_them(here: local.Local, watching: Flower, tmp_path: Path) -> None:
    """The pictures are kept in FLOWER_PICTURES, if that is set: look at them after each change of a page."""
    pictures = Path(os.environ.get("FLOWER_PICTURES", tmp_path))
    with Client(here.redis_url) as client:
        jobs = [client.submit(f"{n}?", lane=lane) for n, lane in enumerate(["interactive", "standard", "batch"] * 3)]
        jobs.append(client.submit("?", constraints={"only": ["nobody"]}))
        until(lambda: {job.status() for job in jobs} == {"succeeded", "failed"}, 60)
        results = [job.result() for job in jobs]
    ended = re.compile('"state": "(SUCCESS|FAILURE)"')
    until(lambda: all(ended.search(watching.get(f"/api/task/info/{job.id}")) for job in jobs), 60)
    tasks = looked_at(f"{watching.url}/tasks", pictures / "tasks.png")
    for job, result in zip(jobs, results, strict=True):
        assert f'title="{job.id}"' in tasks
        assert result is not None
        assert result.summary()[:60] in html.unescape(tasks)
    providers = looked_at(f"{watching.url}/providers", pictures / "providers.png")
    assert ">Providers</a>" in tasks
    for endpoint in here.settings.config.providers:
        assert f'<tr id="{endpoint}/' in providers
    assert providers.count(">Isolate</button>") == providers.count('<tr id="')
    for picture in (pictures / "tasks.png", pictures / "providers.png"):
        assert picture.read_bytes()[12:24] == b"IHDR" + (1280).to_bytes(4) + (900).to_bytes(4)
        assert picture.stat().st_size > 30_000, "an empty page takes a tenth of it"


@pytest.fixture
def guarded(here: local.Local, tmp_path: Path) -> Iterator[Guarded]:
    password = tmp_path / "login"
    password.write_text("ada:lovelace\n")
    login = {"FLOWER_UNAUTHENTICATED_API": "", "FLOWER_BASIC_AUTH_FILE": str(password)}
    with flower(tmp_path, {**here.environ, **login}) as watching:
        yield Guarded(watching.url)


class Guarded:
    """A client of a Flower that wants a login."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.cookie = ""

    def ask(self, path: str, login: bool = True, **form: str) -> tuple[int, str]:
        headers = {"Authorization": "Basic " + b64encode(b"ada:lovelace").decode()} if login else {}
        body = urllib.parse.urlencode(form).encode() if form else None
        request = urllib.request.Request(self._url + path, body, {**headers, "Cookie": self.cookie})
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                self.cookie = (reply.headers["Set-Cookie"] or self.cookie).partition(";")[0]
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


def test_the_providers_tab_wants_the_login_and_its_buttons_a_token(guarded: Guarded) -> None:
    assert guarded.ask("/providers", login=False)[0] == 401
    assert guarded.ask("/api/providers", login=False)[0] == 401
    endpoint = "sim-swift/llama-3.3-70b"
    assert guarded.ask("/providers", endpoint=endpoint, action="isolated")[0] == 403

    def circuit() -> str:
        told = json.loads(guarded.ask("/api/providers")[1])
        return {one["endpoint"]: one["circuit"] for one in told["endpoints"]}[endpoint]

    token = guarded.ask("/providers")[1].partition('name="_xsrf" value="')[2].partition('"')[0]
    assert guarded.ask("/providers", endpoint="nobody/nothing", action="isolated", _xsrf=token)[0] == 400
    assert circuit() == "closed"
    assert guarded.ask("/providers", endpoint=endpoint, action="isolated", _xsrf=token)[0] == 200
    assert circuit() == "isolated"
    assert guarded.ask("/providers", endpoint=endpoint, action="restored", _xsrf=token)[0] == 200
    assert circuit() == "closed"


def test_a_public_address_wants_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLOWER_BASIC_AUTH", "FLOWER_BASIC_AUTH_FILE", "FLOWER_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for arguments, environ in ((["--address", "0.0.0.0"], {}), ([], {"FLOWER_ADDRESS": "0.0.0.0"})):
        told = CliRunner().invoke(flower_command, arguments, env=environ)
        assert told.exit_code == 1
        assert "0.0.0.0 can be reached by others: set FLOWER_BASIC_AUTH=user:password" in told.output
