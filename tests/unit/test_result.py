"""A job's result: its one line for people, and the errors that callers catch."""

import json
import pickle

import pytest
from celery import Celery
from pydantic import ValidationError

from turnout.errors import Cancelled, Conflict, Expired, Failed, IntakeRefused, TurnoutError
from turnout.ledger import NewJob
from turnout.ledger.content import CONTENT
from turnout.messages import FunctionCall, ToolCall
from turnout.request import InferenceRequest, InferenceResponse, Usage
from turnout.result import Attempt, JobResult, JobStatus, Problem, dollars

ANSWER = InferenceResponse(
    text="Paris",
    usage=Usage(input_tokens=400, output_tokens=12),
    cost_microusd=200,
    provider="groq",
    model_requested="llama-3.3-70b",
    model_served="llama-3.3-70b-versatile",
    latency_s=0.81,
)
OK = Attempt(endpoint="groq/llama-3.3-70b", provider="groq", model="llama-3.3-70b", started_at=1.0)
DOWN = OK.model_copy(update={"failure": "unavailable", "message": "connection refused"})


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (
            JobResult(id="a", status="succeeded", response=ANSWER, attempts=(DOWN, OK), cost_microusd=200),
            "groq · llama-3.3-70b · 412 tokens · $0.0002 · 0.8 s · 2 attempts",
        ),
        (
            JobResult(
                id="a",
                status="succeeded",
                response=ANSWER.model_copy(update={"cost_microusd": None, "simulated": True}),
                attempts=(OK,),
            ),
            "groq · llama-3.3-70b · 412 tokens · cost unknown · 0.8 s · simulated",
        ),
        (
            JobResult(
                id="a",
                status="failed",
                error=Problem(code="timed_out", message="no byte in 60 s"),
                attempts=(DOWN,),
                unsure_microusd=1_500_000,
            ),
            "failed · timed_out: no byte in 60 s · $1.50 unsure · 1 attempt",
        ),
        (JobResult(id="a", status="cancelled"), "cancelled"),
    ],
)
def test_summary_is_one_line_for_people(result: JobResult, line: str) -> None:
    assert result.summary() == line


@pytest.mark.parametrize(
    ("microusd", "text"),
    [(0, "$0"), (2, "$0.000002"), (200, "$0.0002"), (10_000, "$0.01"), (1_234_567_890, "$1,234.57")],
)
def test_small_money_keeps_its_digits(microusd: int, text: str) -> None:
    assert dollars(microusd) == text


def test_answer_is_the_response_or_the_error_of_its_status() -> None:
    assert JobResult(id="a", status="succeeded", response=ANSWER).answer() is ANSWER
    for status, error in (("failed", Failed), ("expired", Expired), ("cancelled", Cancelled)):
        with pytest.raises(error, match=f"job a {status}"):
            JobResult(id="a", status=JobStatus(status), error=Problem(code="c", message="m")).answer()


def test_result_survives_its_json() -> None:
    result = JobResult(id="a", status="succeeded", response=ANSWER, attempts=(DOWN, OK), failovers=1)
    assert JobResult.model_validate_json(result.model_dump_json(exclude_defaults=True)) == result


def test_of_a_result_of_a_later_release_what_is_unknown_is_left_out_or_told_as_such() -> None:
    calls = (ToolCall(id="c", function=FunctionCall(name="f")),)
    answer = ANSWER.model_copy(update={"tool_calls": calls})
    stored = JobResult(id="a", status="succeeded", response=answer, attempts=(OK,)).model_dump(mode="json")
    response = stored["response"]
    for later in (stored, response, response["tool_calls"][0], response["tool_calls"][0]["function"]):
        later["new"] = {"er": 1}
    response["finish"] = response["usage"]["source"] = "new"
    for read in (JobResult.model_validate(stored), JobResult.model_validate_json(json.dumps(stored))):
        told = read.answer()
        assert told.tool_calls == calls
        assert (told.finish, told.usage.source) == ("other", "estimated")
    with pytest.raises(ValidationError, match=r"messages\.0\.tool_calls\.0\.new"):
        InferenceRequest.model_validate({"messages": [{"role": "assistant", "tool_calls": response["tool_calls"]}]})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Conflict("job-1"), "job job-1 exists with other content"),
        (IntakeRefused("Redis memory is 80 % full", retryable=True), "80 % full"),
        (Failed(JobResult(id="a", status="failed", attempts=(DOWN,))), "job a failed · 1 attempt"),
    ],
)
def test_errors_say_what_happened_also_after_pickling(error: TurnoutError, says: str) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert says in str(error)
    assert str(again) == str(error)


def test_an_error_that_ends_a_celery_task_of_the_users_own_is_the_same_to_who_waits_for_that() -> None:
    backend = Celery(set_as_current=False, backend="cache+memory://").backend
    for error in (Failed(JobResult(id="a", status="failed", attempts=(DOWN,))), Conflict("job-1")):
        stored = backend.decode(backend.encode(backend.prepare_exception(error)))
        again = backend.exception_to_python(stored)
        assert (type(again), str(again), repr(again)) == (type(error), str(error), repr(error))
        assert getattr(again, "result", None) == getattr(error, "result", None)


def test_no_repr_shows_what_is_asked_or_answered() -> None:
    asked = [InferenceRequest(prompt="canary"), InferenceRequest(messages=({"role": "user", "content": "canary"},))]
    values = [*asked, InferenceRequest(input="canary"), ANSWER.model_copy(update={"text": "canary"})]
    result = JobResult(id="a", status="succeeded", response=values[-1])
    assert "canary" not in repr([*values, result, NewJob.of("a", asked[0])])


def test_all_that_no_repr_shows_of_an_answer_is_sealed_where_there_are_keys() -> None:
    assert {name for name, field in InferenceResponse.model_fields.items() if not field.repr} == CONTENT
