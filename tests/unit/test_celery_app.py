"""Our Celery app among the variables of an app of somebody's own."""

from __future__ import annotations

import pytest

from turnout_workers.celery_app import celery_app

URL = "redis://127.0.0.1:1/5"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CELERY_BROKER_URL", "amqp://elsewhere"),
        ("CELERY_BROKER_READ_URL", "amqp://elsewhere"),
        ("CELERY_BROKER_WRITE_URL", "amqp://elsewhere"),
        ("CELERY_RESULT_BACKEND", "db+sqlite://"),
        ("CELERY_CONFIG_MODULE", "no_such_module"),
        ("CELERY_LOADER", "no_such_module:Loader"),
        ("DJANGO_SETTINGS_MODULE", "no_such_module"),
    ],
)
def test_a_variable_of_another_app_changes_nothing(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    app = celery_app(URL)
    app.loader.init_worker()
    assert (app.conf.broker_read_url, app.conf.broker_write_url, app.conf.result_backend) == (URL,) * 3
