"""A Celery app on a fleet's Redis, with our transport: for workers and Flower."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from celery import Celery

from turnout.redis_address import KEPT_ALIVE, sentinels
from turnout_workers import transport

CELERY_VARIABLES = (
    *("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"),
    *("CELERY_CONFIG_MODULE", "CELERY_LOADER"),
)
"""Environment variables from which Celery takes settings."""
SOCKET_TIMEOUT_S = 3.0
"""After this time Celery considers a silent Redis gone. Until then it does nothing else, and doesn't stop either."""


def celery_app(url: str, **options: Any) -> Celery:
    """A Celery app on the Redis at `url`. The environment may hold variables of another Celery app, which would
    override any settings: they are removed."""
    for name in CELERY_VARIABLES:
        os.environ.pop(name, None)
    app = Celery("turnout", fixups=[], **options)  # one of the fixups sets up Django
    app.conf.update(celery_settings(url))
    return app


def celery_settings(url: str) -> dict[str, Any]:
    """How a Celery app reaches the Redis at `url`, and with which transport."""
    options: dict[str, Any] = {
        **KEPT_ALIVE,
        "socket_connect_timeout": 5,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "health_check_interval": 15,
        "max_connections": 50,
    }
    by = f"{transport.__name__}:Transport"
    if url.startswith("rediss:") and "ssl_cert_reqs=" not in url:  # redis-py's default, but Celery requires it
        url += ("&" if "?" in url else "?") + "ssl_cert_reqs=required"
    if (found := sentinels(url)) is not None:
        by = "sentinel"
        user, password = (quote(found.login.get(name, ""), safe="") for name in ("username", "password"))
        login = f"{user}:{password}@" if found.login else ""
        nodes = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found.nodes]
        url = ";".join(f"sentinel://{login}{node}/{found.database}" for node in nodes)
        options |= {"master_name": found.service, "sentinel_kwargs": found.sentinel_options}
    return {
        "broker_url": url,
        "broker_transport": by,
        "result_backend": url,
        "broker_transport_options": options,
        "result_backend_transport_options": options,
    }
