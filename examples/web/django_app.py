"""Turnout in a Django app: submit, poll, stream, be told.    python examples/web/django_app.py runserver

A project in one file. In yours, the views go to views.py and the routes to urls.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from turnout import Client, Conflict, IntakeRefused, Restarted, TurnoutError
from turnout.webhook import NotSigned, verified

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=os.urandom(32).hex(), ALLOWED_HOSTS=["*"], DEBUG=False)

turnout = Client()  # at REDIS_URL; threads share it, and it connects when it is first used
told: dict[str, str] = {}  # in place of your database


@csrf_exempt
@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    options = {"stream": True, "webhook": os.environ.get("ANSWERS_WEBHOOK")}
    try:
        text = json.loads(request.body)["text"]
        job = turnout.submit(text, idempotency_key=request.headers.get("Idempotency-Key"), **options)
    except Conflict as error:
        return JsonResponse({"error": str(error)}, status=409)
    except IntakeRefused as error:
        return JsonResponse({"error": str(error)}, status=503)
    return JsonResponse({"id": job.id}, status=202)


@require_GET
def answer(request: HttpRequest, job_id: str) -> HttpResponse:
    job = turnout.job(job_id)
    try:
        status, result = job.status(), job.result()
    except LookupError as error:
        return JsonResponse({"error": str(error)}, status=404)
    return JsonResponse({"status": status, "text": result.response.text if result and result.response else None})


@require_GET
def stream(request: HttpRequest, job_id: str) -> StreamingHttpResponse:
    def events() -> Iterator[str]:
        try:
            for piece in turnout.job(job_id).stream():
                yield event("restart" if isinstance(piece, Restarted) else "piece", piece)
            yield event("end", "")
        except (TurnoutError, LookupError) as error:
            yield event("failed", type(error).__name__)

    return StreamingHttpResponse(events(), content_type="text/event-stream")


@csrf_exempt  # the signature stands for it
@require_POST
def answered(request: HttpRequest) -> HttpResponse:
    try:
        result = verified(request.body, request.headers, os.environ["ANSWERS_SECRET"])
    except NotSigned as error:
        return JsonResponse({"error": str(error)}, status=401)
    told[result.id] = result.status
    return HttpResponse(status=204)


def event(name: str, piece: str) -> str:
    return f"event: {name}\ndata: {json.dumps(piece)}\n\n"


urlpatterns = [
    path("questions", ask),
    path("questions/<str:job_id>", answer),
    path("questions/<str:job_id>/stream", stream),
    path("answers", answered),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
