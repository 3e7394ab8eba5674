"""Requests: whatever can be asked is read again as it was stored, and what can't is told without its content."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel, Field, ValidationError

from turnout.client.submission import job_chunks, job_id, new_job, refusal
from turnout.ledger import Intake, NewJob
from turnout.messages import ImageUrl, Message, ResponseFormat, TextPart, is_inline
from turnout.request import InferenceRequest, Lane, RoutingConstraints
from turnout.validation import MAX_PROBLEMS, explain, innermost

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALL = {"id": "call-1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"input": ["a", "b"], "dimensions": 8},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call-1"}]},
        {"prompt": "a", "tools": [{"function": {"name": "weather"}}], "tool_choice": "weather"},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"prompt": "a", "model": ["x", "y"], "extras": {"acme": {"k": [1]}}, "metadata": {"k": "v"}},
        {"prompt": "a", "constraints": {"capabilities": ["tools", "vision"], "deadline": "2030-01-31T12:00:00Z"}},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_a_request_is_read_again_as_it_was_stored(fields: dict[str, Any]) -> None:
    request = InferenceRequest.model_validate(fields)
    assert InferenceRequest.model_validate_json(request.canonical_json()) == request


def test_what_is_a_callers_own_is_stored_in_its_own_order_and_in_another_is_another_request() -> None:
    """A model writes its answer in the order of its schema's fields."""

    def stored(schema: dict[str, Any]) -> NewJob:
        tool = {"function": {"name": "look_up", "parameters": schema}}
        return new_job(
            {"prompt": "a"},
            response_format={"type": "json_schema", "json_schema": schema},
            tools=[tool],
            extras={"acme": {"grammar": schema}},
        )

    one, other = ({"properties": {name: {} for name in names}} for names in (("why", "verdict"), ("verdict", "why")))
    assert stored(one).payload.count('{"properties":{"why":{},"verdict":{}}}') == 3
    assert stored(one).fingerprint != stored(other).fingerprint


def test_the_order_in_which_our_own_fields_are_given_is_of_no_matter() -> None:
    fields = {"prompt": "a", "seed": 3, "constraints": {"capabilities": ["tools", "vision"], "no_training": True}}
    turned = {"constraints": {"no_training": True, "capabilities": ["vision", "tools"]}, "seed": 3, "prompt": "a"}
    assert new_job(fields).fingerprint == new_job(turned).fingerprint


def asked(*args: Any, **options: Any) -> InferenceRequest:
    """What is stored of what a client submits."""
    return InferenceRequest.model_validate_json(new_job(*args, **options).payload)


PRIVATE = RoutingConstraints(no_training=True, regions=("eu",), deadline_s=5)


@pytest.mark.parametrize(
    "request_", [InferenceRequest(prompt="a", constraints=PRIVATE), {"prompt": "a", "constraints": PRIVATE}]
)
@pytest.mark.parametrize("beside", [{"deadline_s": 60}, RoutingConstraints(deadline_s=60)])
def test_a_deadline_beside_a_request_takes_no_data_policy_away(request_: Any, beside: Any) -> None:
    wish = asked(request_, constraints=beside, lane="batch").constraints
    assert wish == PRIVATE.model_copy(update={"deadline_s": 60, "lane": Lane.BATCH})


def test_what_is_beside_a_request_is_joined_key_by_key_and_counts_before_it() -> None:
    fields = {
        "prompt": "a",
        "model": "m1",
        "metadata": {"a": "1", "b": "1"},
        "extras": {"x": {"k": 1}},
        "lane": "batch",
    }
    request = asked(
        fields, model="m2", metadata={"b": "2"}, extras={"y": {"k": 2}}, seed=None, constraints={"lane": "standard"}
    )
    assert request.model == "m2"
    assert request.metadata == {"a": "1", "b": "2"}
    assert request.extras == {"x": {"k": 1}, "y": {"k": 2}}
    assert request.constraints.lane == "standard"


def test_what_one_of_many_says_itself_counts_before_what_is_said_for_all() -> None:
    one: dict[str, Any] = {
        "prompt": "a",
        "model": "m1",
        "constraints": {"no_training": True, "lane": "batch"},
        "metadata": {"a": "1"},
        "webhook": "own",
        "stream": None,
        "idempotency_key": "k",
    }
    for_all: Any = {
        "model": "m2",
        "constraints": {"no_training": False, "max_cost_usd": 1},
        "metadata": {"a": "2", "b": "2"},
        "webhook": "all",
        "stream": True,
        "lane": "standard",
        "idempotency_key": "call",
    }
    ((own, other),) = job_chunks([one, "b"], **for_all)
    request = InferenceRequest.model_validate_json(own.payload)
    assert (request.model, request.metadata) == ("m1", {"a": "1", "b": "2"})
    assert request.constraints == RoutingConstraints(no_training=True, max_cost_usd=1, lane=Lane.BATCH)
    assert (own.webhook, own.stream, own.id) == ("own", True, job_id("k"))
    assert InferenceRequest.model_validate_json(other.payload).constraints.lane == "standard"
    assert (other.webhook, other.id) == ("all", job_id("call\0" + "1"))


@pytest.mark.filterwarnings("error")
def test_of_a_copy_what_nobody_has_validated_is_submitted_without_a_warning_that_shows_it() -> None:
    request = InferenceRequest(messages=({"role": "user", "content": "a"},))
    more = request.model_copy(update={"messages": [*request.chat, {"role": "user", "content": "canary"}]})
    assert [message.text for message in asked(more).chat] == ["a", "canary"]
    other = request.chat[0].model_copy(update={"content": [{"type": "text", "text": "canary"}]})
    assert asked(messages=[other]).chat[0].text == "canary"
    with pytest.raises(ValidationError) as refused:
        new_job(messages=[other.model_copy(update={"content": {"canary": 1}})])
    assert "canary" not in str(refused.value)


def test_what_was_filled_in_in_place_is_submitted() -> None:
    request, labelled = InferenceRequest(prompt="a"), InferenceRequest(prompt="a", metadata={"a": "1"})
    request.extras["acme"] = {"k": 1}
    for one in (request, labelled):
        one.metadata["b"] = "2"
    assert asked(request) == asked("a", metadata={"b": "2"}, extras={"acme": {"k": 1}})
    assert asked(labelled) == asked("a", metadata={"a": "1", "b": "2"})


def test_so_is_what_was_filled_in_in_a_model_of_another_library() -> None:
    class Wish(BaseModel):
        only: list[str] = []
        no_training: bool = False

    wish = Wish()
    wish.only.append("own-server")
    assert asked("a", constraints=wish).constraints.only == ("own-server",)

    class Function(BaseModel):
        name: str
        parameters: dict[str, Any] = {}

    class Offered(BaseModel):
        type: str
        function: Function

    tool = Offered(type="function", function=Function(name="f"))
    tool.function.parameters["type"] = "object"
    assert asked("a", tools=[tool]).tools[0].function.parameters == {"type": "object"}


def test_of_such_a_model_what_was_set_to_its_default_is_kept_and_what_was_made_up_for_it_is_not() -> None:
    class Part(BaseModel):
        type: str = "text"
        text: str

    class Said(BaseModel):
        role: str
        content: list[Part]
        id: str = Field(default_factory=lambda: "made up")

    said = Said.model_validate({"role": "user", "content": [{"type": "text", "text": "Why?"}]})
    assert asked(messages=[said]).chat == (Message(role="user", content=(TextPart(type="text", text="Why?"),)),)


def test_what_was_set_to_its_default_was_set() -> None:
    request = InferenceRequest(prompt="a", constraints=RoutingConstraints(lane=Lane.STANDARD, no_training=False))
    assert asked(request).constraints.lane == "standard", "and not interactive"
    ((job,),) = job_chunks([request], constraints={"no_training": True})
    assert not InferenceRequest.model_validate_json(job.payload).constraints.no_training


@pytest.mark.parametrize("field", ["constraints", "metadata", "extras"])
def test_what_is_no_mapping_is_refused_and_not_replaced_by_what_is_beside_it(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        new_job({"prompt": "a", field: "cheap"}, lane="batch", **{field: {}})


@pytest.mark.parametrize(
    ("model", "acceptable"),
    [(None, ()), ("auto", ()), (["auto"], ()), (["x", "auto"], ()), ("x", ("x",)), (["x", "y"], ("x", "y"))],
)
def test_any_model_will_do_where_none_or_auto_is_named(model: Any, acceptable: tuple[str, ...]) -> None:
    assert InferenceRequest(prompt="A?", model=model).models == acceptable


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "description": "d", "schema": SCHEMA, "strict": None},
                }
            },
            {"response_format": {"type": "json_schema", "name": "n", "description": "d", "json_schema": SCHEMA}},
        ),
        ({"stop": "END"}, {"stop": ["END"]}),
        (
            {"constraints": {"only": "groq", "capabilities": "tools"}},
            {"constraints": {"only": ["groq"], "capabilities": ["tools"]}},
        ),
    ],
    ids=["response_format", "stop", "constraints"],
)
def test_what_comes_in_another_shape_is_read_as_ours(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert InferenceRequest.model_validate({"prompt": "a", **theirs}) == InferenceRequest.model_validate(
        {"prompt": "a", **ours}
    )


CLOSED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "allows"),
    [
        (CLOSED, True),
        (SCHEMA, False),
        ({**CLOSED, "required": []}, False),
        ({**CLOSED, "properties": {"n": SCHEMA}}, False),
        ({**CLOSED, "properties": {"n": {**SCHEMA, "type": ["object", "null"]}}}, False),
        ({**CLOSED, "properties": []}, False),
        ({**CLOSED, "required": [{}]}, False),
        ({**CLOSED, "required": "n"}, False),
        ({"anyOf": [CLOSED]}, False),
        ({**CLOSED, "properties": {"n": {"anyOf": [CLOSED, {"type": "null"}]}}}, True),
        # "$ref cannot have keywords {'description'}", and the like
        ({**CLOSED, "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": CLOSED}}, True),
        ({**CLOSED, "properties": {"n": {"$ref": "#/$defs/N", "description": "x"}}, "$defs": {"N": CLOSED}}, False),
        ({**CLOSED, "properties": {"n": {"oneOf": [CLOSED]}}}, False),
        ({**CLOSED, "properties": {"n": {"allOf": [CLOSED]}}}, False),
        ({**CLOSED, "properties": {"n": {"not": {"type": "null"}}}}, False),
        ({**CLOSED, "properties": {"n": {"type": "array", "prefixItems": [{"type": "integer"}]}}}, False),
        ({**CLOSED, "properties": {"n": {"type": "array", "items": {}, "uniqueItems": True}}}, False),
        ({**CLOSED, "properties": {"n": {"type": "integer", "default": 3}}}, False),
        ({**CLOSED, "patternProperties": {"^x": {}}}, False),
        # a field of the same name is no keyword
        ({**CLOSED, "properties": {"not": {"type": "integer"}}, "required": ["not"]}, True),
        ({**CLOSED, "properties": {"n": {"$ref": "#/$defs/not"}}, "$defs": {"not": CLOSED}}, True),
        ({}, False),
    ],
    ids=str,
)
def test_an_answer_is_asked_for_strictly_where_its_schema_allows_it_unless_the_caller_says(
    schema: dict[str, Any], allows: bool
) -> None:
    """OpenAI refuses other schemas in its strict mode; a line in its shape that says nothing is not to be refused."""

    def strict(**said: Any) -> set[bool]:
        ours = {"type": "json_schema", "json_schema": schema, **said}
        theirs = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **said}}
        return {ResponseFormat.model_validate(given).is_strict for given in (ours, theirs)}

    assert strict() == strict(strict=None) == {allows}
    assert strict(strict=True) == {True}
    assert strict(strict=False) == {False}


def test_an_answer_of_openais_api_can_be_given_back_and_what_it_says_beside_is_refused() -> None:
    said = ChatCompletionMessage(role="assistant", content="Hello", annotations=[]).model_dump()
    assert {name for name, value in said.items() if value is None} >= {"tool_calls", "refusal", "audio"}
    wanted = InferenceRequest.model_validate({"messages": [{"role": "assistant", "content": "Hello"}]})
    for read in (
        lambda message: InferenceRequest(messages=[message]),  # type: ignore[list-item]
        lambda message: InferenceRequest.model_validate_json(json.dumps({"messages": [message]}), strict=True),
        lambda message: asked(messages=[message], lane="standard"),
    ):
        assert read(said) == wanted
        with pytest.raises(ValidationError, match=r"messages.0.audio"):
            read(said | {"audio": {"id": "a"}})
    further = ChatCompletionMessage.construct(role="assistant", content="Hello", reasoning="Say it.")
    with pytest.raises(ValidationError, match=r"messages.0.reasoning"):
        asked(messages=[further])


@pytest.mark.parametrize("part", [{"text": "canary"}, {"type": "canary", "text": "canary"}])
def test_a_part_of_no_known_type_is_told_without_what_it_says(part: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        InferenceRequest.model_validate({"messages": [{"role": "user", "content": [part]}]})
    assert "messages.0.content.0: type must be text or image_url" in explain(refused.value)
    assert "canary" not in explain(refused.value)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": [1] * 500_000}, "messages.0"),
        ({"messages": [{"role": "user", "content": [1] * 500_000}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "tool_calls": [1] * 500_000}]}, "messages.0.tool_calls.0"),
        ({"input": [1] * 500_000}, "input.0"),
        ({"prompt": "a", "model": [1] * 500_000}, "model.0"),
        ({"prompt": "a", "tools": [1] * 500_000}, "tools.0"),
        ({"prompt": "a", "stop": [1] * 500_000}, "stop.0"),
        ({"prompt": "a", "constraints": {"only": [1] * 500_000}}, "constraints.only.0"),
        ({"prompt": "a", "constraints": {"capabilities": ["x"] * 500_000}}, "constraints.capabilities.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "read",
    [
        InferenceRequest.model_validate,
        lambda fields: InferenceRequest.model_validate_json(json.dumps(fields), strict=True),
    ],
    ids=["python", "json"],
)
def test_of_a_list_only_the_first_problem_is_looked_for(
    fields: dict[str, Any], place: str, read: Callable[[Any], InferenceRequest]
) -> None:
    """2 MB of bad messages took 17 s and a gigabyte."""
    with pytest.raises(ValidationError) as refused:
        read(fields)
    assert refused.value.error_count() <= 2
    assert explain(refused.value).startswith(f"{place}: Input should be")
    assert ";" not in explain(refused.value)


@pytest.mark.parametrize(
    "part",
    [{"content": [{"type": "text", "text": "a", "new": 1}]}, {"content": "a", "new": 1}],
    ids=["part", "message"],
)
def test_of_a_union_only_the_member_that_was_meant_complains(part: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        InferenceRequest.model_validate({"messages": [{"role": "user", **part}]})
    assert [problem["type"] for problem in innermost(refused.value).values()] == ["extra_forbidden"]


def test_problems_without_number_are_counted_alone() -> None:
    def told(count: int) -> str:
        with pytest.raises(ValidationError) as refused:
            InferenceRequest.model_validate({"prompt": "a", **dict.fromkeys((f"x{n}" for n in range(count)), 0)})
        return explain(refused.value)

    assert told(MAX_PROBLEMS) == "x0: unknown field; x1: unknown field; x2: unknown field; and 997 more"
    assert told(50_000) == "it has 50,000 problems, too many to list"


@pytest.mark.parametrize(
    "field", ["max_output_tokens", "dimensions", "timeout_s"]
    + [f"constraints.{name}" for name in ("max_cost_usd", "deadline_s", "max_latency_s", "min_context_tokens")],
)  # fmt: skip
def test_no_number_is_too_large_to_reckon_with(field: str) -> None:
    """Workers failed on a ceiling of 1e308 dollars, again and again until its lease had lapsed ten times."""
    outer, _, inner = field.rpartition(".")

    def asking(number: int) -> InferenceRequest:
        return InferenceRequest.model_validate(
            {"prompt": "a", **({outer: {inner: number}} if outer else {inner: number})}
        )

    assert asking(10**9)
    with pytest.raises(ValidationError, match="less than or equal to 1000000000"):
        asking(10**300)


@pytest.mark.parametrize("name", ["a b", "a\nb", "\x1b[31m", "\x9b31m", "a\u202eb", "a\x7f", "\ufeffa"])
def test_a_name_holds_nothing_that_a_terminal_obeys(name: str) -> None:
    for fields in ({"model": name}, {"model": ["m", name]}, {"constraints": {"tenant": name}}):
        with pytest.raises(ValidationError) as refused:
            InferenceRequest.model_validate({"prompt": "a", **fields})
        assert "must be a name without spaces and control characters" in explain(refused.value)


def test_messages_that_are_one_text_are_one_problem() -> None:
    with pytest.raises(ValidationError) as refused:
        new_job(messages="Hello")  # type: ignore[arg-type]
    assert refused.value.error_count() == 1


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"prompt": "a"}, set()),
        ({"prompt": "a", "tools": [{"function": {"name": "weather"}}]}, {"tools"}),
        ({"prompt": "a", "response_format": {"type": "json_schema", "json_schema": SCHEMA}}, {"json_schema"}),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, set()),
        ({"input": "a"}, {"embeddings"}),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, {"vision"}),
        ({"prompt": "a", "constraints": {"capabilities": ["reasoning"]}}, {"reasoning"}),
    ],
)
def test_a_request_shows_what_a_model_must_be_able_to_do(fields: dict[str, Any], needed: set[str]) -> None:
    assert InferenceRequest.model_validate(fields).required_capabilities == needed


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages is empty"),
        ({"prompt": "a", "input": "b"}, "give exactly one of prompt, messages, input; got prompt, input"),
        (
            {"messages": [{"role": "user", "content": [IMAGE | {"image_url": {"url": "https://a.example/x.png"}}]}]},
            "messages.0.content.0.image_url.url: must be a data:image/…;base64,… URI; remote images are not fetched",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        InferenceRequest.model_validate(fields)
    assert explain(refused.value) == told


@pytest.mark.parametrize(
    "url",
    [
        "data:image/",
        "data:image/png,raw",
        "data:image/png;base64,",
        "data:image/png;base64",
        "data:text/plain;base64,AA",
    ],
)
def test_what_no_vendor_can_read_is_no_image(url: str) -> None:
    with pytest.raises(ValidationError, match="must be a data:image/…;base64,… URI"):
        ImageUrl(url=url)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("data:image/PNG;base64,iVBOR", "data:image/png;base64,iVBOR"),
        ("DATA:IMAGE/JPEG; BASE64,/9j/4A\r\nAQ\n", "data:image/jpeg;base64,/9j/4AAQ"),
        ("data:image/svg+xml;charset=utf-8;base64,PHN2", "data:image/svg+xml;charset=utf-8;base64,PHN2"),
        ("data:image/png ; a=b ;base64,iVBOR", "data:image/png;a=b;base64,iVBOR"),
    ],
)
def test_an_image_is_sent_in_the_form_that_all_vendors_read(written: str, sent: str) -> None:
    assert ImageUrl(url=written).url == sent


@pytest.mark.parametrize("repeated", [";   ", ";", " ", "; base64 ", ";a=b "])
def test_no_url_takes_long_to_refuse(repeated: str) -> None:
    """A URL of 75 bytes once took 20 s, and each four further bytes made it sixteen times as long."""
    began = time.process_time()
    assert not is_inline("data:image/png" + repeated * 5000 + ",AAAA")
    assert time.process_time() - began < 5


def test_many_requests_are_sent_by_the_hundred_and_large_ones_a_few_at_a_time() -> None:
    """Without a bound on their size, 500 images of a megabyte were held at once, each several times over."""
    assert [len(chunk) for chunk in job_chunks("A?" for _ in range(1001))] == [500, 500, 1]
    large = [len(chunk) for chunk in job_chunks(("x" * 900_000 for _ in range(12)), idempotency_key="k")]
    assert large == [5, 5, 2]


def test_a_job_that_is_not_accepted_says_why_and_whether_to_try_later() -> None:
    assert refusal("a", Intake.QUEUED) is refusal("a", Intake.DUPLICATE) is None
    told = {outcome: refusal("a", outcome) for outcome in (Intake.FULL, Intake.EXPIRED, Intake.CONFLICT)}
    assert {outcome: error.retryable for outcome, error in told.items() if error} == {
        Intake.FULL: True, Intake.EXPIRED: False, Intake.CONFLICT: False,
    }  # fmt: skip


def test_the_order_of_labels_and_of_providers_makes_no_other_request() -> None:
    def text(*names: str) -> str:
        labels, extras = {name: name for name in names}, {name: {"z": 1, "a": 2} for name in names}
        return InferenceRequest(prompt="?", metadata=labels, extras=extras).canonical_json()

    assert text("a", "b") == text("b", "a")
    assert '{"z":1,"a":2}' in text("a"), "what is sent keeps its order"


def test_whether_a_models_schema_is_strict_is_said_for_workers_that_would_take_it_for_granted() -> None:
    class Open(BaseModel):
        a: int
        b: str | None = None

    request = InferenceRequest(prompt="?", response_format=ResponseFormat.of(Open))
    assert json.loads(request.canonical_json())["response_format"]["strict"] is False


def test_what_is_for_whoever_takes_it_is_one_of_openais_fields() -> None:
    with pytest.raises(ValidationError, match=r"seed is for no provider in particular; \* takes frequency_penalty"):
        InferenceRequest(prompt="?", extras={"*": {"user": "u", "seed": 1}})
