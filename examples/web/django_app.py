"""Turnout behind Django, in one file: submit, poll, stream the answer, and receive a webhook when it is done.

python django_app.py runserver      # with REDIS_URL set, and a `turnout worker` on the same Redis
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel, ValidationError
from redis import RedisError

from turnout import Client, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import BadSignature, verified

logger = logging.getLogger(__name__)
SECRET = os.environ.get("WEBHOOK_SECRET")  # the secret of [webhooks.app] in the workers' turnout.toml
WEBHOOK = "app" if SECRET else None
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers for streams: proxies such as nginx would otherwise hold pieces back."""

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for this example"),
        ALLOWED_HOSTS=["127.0.0.1", "testserver"],
        MIDDLEWARE=[f"{__name__}.Away"],
    )
    django.setup()

client = Client()  # one for the whole process: shared by its threads


class Away:
    """Answers while Redis is away. Jobs that were accepted are safe, and `order` makes it safe to ask again."""

    def __init__(self, answer: Callable[[HttpRequest], HttpResponse]) -> None:
        self.answer = answer

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.answer(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> JsonResponse | None:
        if not isinstance(error, RedisError):
            return None
        logger.warning("Redis is away: %s", error)
        return JsonResponse({"error": "try again in a moment"}, status=503)


class Question(BaseModel):
    prompt: str
    order: str
    """A request that arrives twice with the same order is the same job."""


@csrf_exempt
def ask(request: HttpRequest) -> JsonResponse:
    try:
        question = Question.model_validate_json(request.body)
        job = client.submit(
            question.prompt, model="gpt-oss-120b", stream=True, idempotency_key=question.order, webhook=WEBHOOK
        )
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return JsonResponse({"error": wrong}, status=422)
    except Conflict as error:
        return JsonResponse({"error": str(error)}, status=409)
    except IntakeRefused as error:
        return JsonResponse({"error": str(error)}, status=503 if error.retryable else 422)
    return JsonResponse({"id": job.id}, status=202)


def look(_: HttpRequest, job_id: str) -> JsonResponse:
    job = client.job(job_id)
    try:
        status = job.status()
    except LookupError as error:
        return JsonResponse({"error": str(error)}, status=404)
    result = job.result()
    return JsonResponse({"status": status, "text": result.response.text if result and result.response else None})


def stream(_: HttpRequest, job_id: str) -> StreamingHttpResponse:
    def events() -> Iterator[str]:
        try:
            for piece in client.job(job_id).stream(idle_s=15):
                event = "restart" if isinstance(piece, Restarted) else "token"
                yield f"event: {event}\ndata: {json.dumps(piece)}\n\n"
            yield "event: done\ndata: {}\n\n"
        except (TurnoutError, LookupError) as error:  # failed, expired, cancelled or unreadable; or unknown
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        except RedisError as error:  # without an end, the browser reconnects
            logger.warning("a stream of job %s was cut off: %s", job_id, error)

    return StreamingHttpResponse(events(), content_type="text/event-stream", headers=UNBUFFERED)


ended: dict[str, str] = {}
"""A real application would write to its database."""


@csrf_exempt  # the signature proves who calls
def hook(request: HttpRequest) -> HttpResponse:
    """Called by the workers when a job has ended, possibly twice."""
    try:
        message = verified(request.headers, request.body, SECRET)
    except BadSignature as error:
        return JsonResponse({"error": str(error)}, status=401)
    ended[message["data"]["id"]] = message["type"]
    return HttpResponse(status=204)


urlpatterns = [
    path("questions", ask),
    path("questions/<str:job_id>", look),
    path("questions/<str:job_id>/stream", stream),
    path("hooks/turnout", hook),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
