"""Turnout behind Django, in one file: submit, poll, read the answer as it comes, hear by webhook when it is done.

python django_app.py runserver      # with REDIS_URL set, and a `turnout worker` on the same Redis
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from turnout import Client, Conflict, IntakeRefused, JobError, Restarted
from turnout.webhook import BadSignature, verified

SECRET = os.environ.get("WEBHOOK_SECRET")  # that of [webhooks.app] in the workers' turnout.toml
WEBHOOK = "app" if SECRET else None
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""For streams: proxies such as nginx would otherwise hold pieces back."""

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "for the example alone"),
        ALLOWED_HOSTS=["127.0.0.1", "testserver"],
    )
    django.setup()

client = Client()  # one for the whole process: threads share it


@csrf_exempt
def ask(request: HttpRequest) -> JsonResponse:
    asked = json.loads(request.body)
    try:
        job = client.submit(
            asked["prompt"], model="llama-3.3-70b", stream=True, idempotency_key=asked["order"], webhook=WEBHOOK
        )
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
        except (JobError, LookupError) as error:  # failed, expired or cancelled; or unknown
            yield f"event: failed\ndata: {json.dumps(str(error))}\n\n"
        else:
            yield "event: done\ndata: {}\n\n"

    return StreamingHttpResponse(events(), content_type="text/event-stream", headers=UNBUFFERED)


told: dict[str, str] = {}
"""A real application would write to its database."""


@csrf_exempt  # the signature is what says who calls
def hook(request: HttpRequest) -> HttpResponse:
    """Called by the workers when a job has ended. It may come twice."""
    try:
        message = verified(request.headers, request.body, SECRET or "")
    except BadSignature as error:
        return JsonResponse({"error": str(error)}, status=401)
    told[message["data"]["id"]] = message["type"]
    return HttpResponse(status=204)


urlpatterns = [
    path("questions", ask),
    path("questions/<str:job_id>", look),
    path("questions/<str:job_id>/stream", stream),
    path("hooks/turnout", hook),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
