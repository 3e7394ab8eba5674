"""Flower with one more tab: the providers, their health, limits and money, and a button to take one out.

Built on what Flower leaves open: its list of handlers, the loader of its templates, its options. Flower needs no key
and no worker: it gets a Celery app that only knows the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import flower.command
import flower.urls
from flower.api import BaseApiHandler
from flower.app import Flower
from flower.views import BaseHandler
from flower.views.tasks import TASK_COLUMNS
from kombu import Queue
from redis.exceptions import RedisError
from tornado import template, web
from tornado.options import options
from yarl import URL

from turnout.redis_trouble import explain
from turnout.request import Lane
from turnout_workers.celery_app import celery_app
from turnout_workers.commands.screen import usd
from turnout_workers.deployment import Deployment
from turnout_workers.monitoring.overview import overview
from turnout_workers.state.redis_store import mark_operation

OURS = Path(__file__).with_name("templates")
THEIRS = Path(flower.urls.settings["template_path"])
ADDED = {
    "navbar.html": ("</ul>", "{% include tab.html %}</ul>"),
    "tasks.html": ("{% block container %}", "{% block container %}{% include tasks_style.html %}"),
}
"""By template of Flower's: a text, and what replaces its first occurrence."""
TASK_LIST_COLUMNS = "name,args,state,retries,result,received,worker,uuid"
"""Columns of the list of tasks, unless FLOWER_TASKS_COLUMNS names others."""
MAX_REASON_CHARS = 100
"""Most characters of an error in the list; the task's page shows all."""
MAX_TASKS = "20000"
"""Tasks kept in memory, about 5 kB each, unless FLOWER_MAX_TASKS sets another number."""
COLOURS = {"well": "success", "out": "danger", "disabled": "danger", "isolated": "secondary"}


class Loader(template.Loader):
    """Our templates, else Flower's own with what is in ADDED."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> template.Template:
        folder = OURS if (OURS / name).exists() else THEIRS
        text = (folder / name).read_text("utf-8").replace(*ADDED.get(name, ("", "")), 1)
        return template.Template(text, name=name, loader=self)


class Providers(BaseHandler):  # type: ignore[misc]
    """The tab. GET shows; POST isolates or restores an endpoint."""

    def check_xsrf_cookie(self) -> None:
        # Without authentication Flower requires no token; to take a provider out it is always required.
        web.RequestHandler.check_xsrf_cookie(self)

    @web.authenticated
    async def get(self) -> None:
        view = await _ask_redis(overview, self.settings["here"])
        names = {"usd": usd, "colours": COLOURS, "read_only": options.read_only, "refresh": options.auto_refresh}
        self.render("providers.html", view=view, **names)

    @web.authenticated
    async def post(self) -> None:
        if options.read_only:
            raise web.HTTPError(403, "Read only mode is enabled")
        here, endpoint, action = self.settings["here"], self.get_argument("endpoint"), self.get_argument("action")
        if endpoint not in here.fleet.ids or action not in ("isolated", "restored"):
            raise web.HTTPError(400, "no such endpoint or action")
        reason = "in Flower" if action == "isolated" else ""
        await _ask_redis(here.ask, mark_operation(here.ledger.keys, action, [endpoint], reason))
        self.redirect(self.reverse_url("providers"))


class ProvidersApi(BaseApiHandler):  # type: ignore[misc]
    """The same as JSON, as `turnout status --json` prints it."""

    @web.authenticated
    async def get(self) -> None:
        self.write(await _ask_redis(overview, self.settings["here"]))


async def _ask_redis(work: Callable[..., Any], argument: object) -> Any:
    """Do work in a thread. An error of Redis becomes status 503."""
    try:
        return await asyncio.to_thread(work, argument)
    except RedisError as error:
        raise web.HTTPError(503, explain(error)) from None


def with_outcome(task: Any) -> Any:
    """A task as its page and the list show it: the result is also how it failed, or where it went."""
    if task.result is None and task.exception:
        task.result = textwrap.shorten(task.exception, MAX_REASON_CHARS, placeholder=" …")
    return task


def serve(here: Deployment, address: str, port: int, database: Path, announce: Callable[[str], None]) -> None:
    """Run Flower until SIGTERM or Ctrl-C. Options not set here come from `FLOWER_…` variables as usual."""
    url = here.settings.config.redis_url
    app = celery_app(url)
    app.conf.update(
        broker_transport=None,  # Flower takes it from the URL
        # Flower's broker page reads them only here.
        broker_use_ssl={name: value for name, value in parse_qsl(url.partition("?")[2]) if name.startswith("ssl_")}
        or None,
        task_queues=[Queue(lane.value) for lane in Lane],
        task_default_queue=Lane.STANDARD.value,
        accept_content=["json"],
        broker_connection_max_retries=None,
    )
    os.environ.setdefault("FLOWER_MAX_TASKS", MAX_TASKS)
    flower.command.apply_env_options()
    options.address, options.port = address, port
    options.persistent, options.db = True, str(database)
    options.format_task = with_outcome
    if "FLOWER_TASKS_COLUMNS" not in os.environ:
        options.tasks_columns = TASK_LIST_COLUMNS
        TASK_COLUMNS.update(args="Lane · model", retries="Failovers")
    database.parent.mkdir(parents=True, exist_ok=True)
    flower.command.extract_settings()
    flower.command.setup_logging()
    settings: dict[str, Any] = {**flower.urls.settings, "template_loader": Loader(str(OURS)), "here": here}
    flower.urls.handlers[-1:-1] = [  # before the one that answers 404
        web.url(r"/providers", Providers, name="providers"),
        web.url(r"/api/providers", ProvidersApi),
    ]
    server = Flower(capp=app, options=options, **settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    bound = server.start_http_server()
    prefix = "/".join(["", *filter(None, (options.url_prefix or "").split("/")), ""])
    announce(str(URL.build(scheme="http", host=address, port=bound, path=prefix)))
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        server.start()
    server.stop()  # saves its state
    os._exit(0)  # a normal exit would wait for its threads, which may be waiting for Redis
