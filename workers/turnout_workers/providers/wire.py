"""What passes between a wire format and `Connector`: the request as sent, and the answer in neutral terms."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from turnout.messages import FunctionCall, ImagePart, Message, ToolCall
from turnout.request import ANY_PROVIDER, FinishReason, InferenceRequest, Usage
from turnout_workers.providers.body import parse_json
from turnout_workers.providers.errors import ProviderError, malformed
from turnout_workers.routing.failure import Billed, Failure, FailureKind

T = TypeVar("T")

PROTECTED = frozenset(
    {
        "model", "messages", "contents", "input", "system", "systemInstruction", "system_instruction", "stream",
        "stream_options", "requests",
        # what the call may cost was worked out, and perhaps held back, for these
        "max_tokens", "max_completion_tokens", "n",
        "maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count",
        "generation_config",  # all of the above by another name: Gemini's table is generationConfig
    }
)  # fmt: skip
"""Fields that a job's extras can't set."""
MAX_TOOL_CALLS = 1000
"""Most calls of tools in one answer."""
MAX_CALL_TOKENS = 1e9
"""The most that one call can have; a provider that reports more is not believed."""


@dataclass(slots=True)
class RequestDraft:
    """One request on its way out, and what had to be left out of it."""

    request: InferenceRequest
    provider: str
    parameters: frozenset[str]
    warnings: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def supports(self, name: str) -> bool:
        """Whether the provider takes this parameter; if not, it is left out with a warning, or the call fails."""
        if name in self.parameters:
            self.used.append(name)
            return True
        text = f"{self.provider} does not take {name}"
        if self.request.on_unsupported == "fail":
            raise ProviderError.unsupported(text)
        self.warnings.append(f"{text}; it was left out")
        return False

    def value(self, name: str) -> Any:
        """A parameter's value; None: the request doesn't set it, or the provider doesn't take it."""
        value = getattr(self.request, name)
        return value if value not in (None, ()) and self.supports(name) else None

    def values(self, *same: str, **renamed: str) -> dict[str, Any]:
        """Those of the parameters that the request sets and the provider takes, by its own names: `top_p="topP"`."""
        names = dict(zip(same, same, strict=True)) | renamed
        return {theirs: value for name, theirs in names.items() if (value := self.value(name)) is not None}

    def extras(self) -> dict[str, Any]:
        """The job's own fields for this provider, and those for whoever takes them."""
        own = self.request.extras.get(self.provider, {})
        others = self.request.extras.get(ANY_PROVIDER, {})
        return {name: value for name, value in others.items() if name not in own and self.supports(name)} | own

    def warn_about_images(self, *roles: str) -> None:
        """Say so where messages of these roles hold images: the format has no place for such, so they are left out."""
        for role in roles:
            if any(said_by == role for said_by, _ in self._images()):
                self.supports(f"an image in a message of role {role}")

    def image_details(self) -> set[str | None]:
        """Of all images, what is asked for; None: nothing."""
        return {image.image_url.detail for _, image in self._images()}

    def _images(self) -> Iterator[tuple[str, ImagePart]]:
        """All images, each with the role of its message."""
        for message in self.request.messages or ():
            if isinstance(message.content, tuple):
                yield from ((message.role, part) for part in message.content if isinstance(part, ImagePart))

    def with_extras(self, body: Mapping[str, Any], extras: Mapping[str, Any]) -> dict[str, Any]:
        """The body with the job's own fields for this provider; those of a table go into it one by one."""
        merged = dict(body)
        for name, value in extras.items():
            if name in PROTECTED:
                self.warnings.append(f"extras can't set {name}; it was left out")
            elif isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = self.with_extras(merged[name], value)
            else:
                merged[name] = value
        return merged


def conversation(
    request: InferenceRequest, model: str, parts: Callable[[Message], list[T]]
) -> tuple[str, list[tuple[str, list[T]]]]:
    """The system's messages as one text, for formats that have a place of its own for it, and the turns. What the
    system says alone is the user's turn: these formats demand one."""
    system = "\n\n".join(message.text for message in request.chat if message.role in ("system", "developer"))
    if said := list(_turns(request, model, parts)):
        return system, said
    return "", [("user", parts(Message(role="user", content=system)))]


def _turns(request: InferenceRequest, model: str, parts: Callable[[Message], list[T]]) -> Iterator[tuple[str, list[T]]]:
    """The other messages by turns, of the `model` and of the "user", whose the results of tools are: the role, and the
    parts of its messages. A turn that says nothing is left out, for formats that know turns take none. It begins with
    results of tools, as Claude demands, in the order of their calls: Gemini knows them by their function's name."""
    calls = [call.id for message in request.chat for call in message.tool_calls]
    places = {id: place for place, id in enumerate(calls)}
    others = (message for message in request.chat if message.role not in ("system", "developer"))
    for role, turn in groupby(others, lambda message: model if message.role == "assistant" else "user"):
        ordered = sorted(turn, key=lambda message: places.get(message.tool_call_id or "", len(calls)))
        if said := [part for message in ordered for part in parts(message)]:
            yield role, said


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer in neutral terms, as far as its body says it."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    reasoning_content: str | None = None
    embeddings: tuple[tuple[float, ...], ...] = ()
    finish: FinishReason = FinishReason.STOP
    finish_raw: str | None = None
    billed: Billed = Billed.YES
    """Whether it is billed if it was filtered, and says nothing."""
    usage: Usage | None = None
    """None: not reported, or not to be believed."""
    cost_usd: float | None = None
    """What the provider itself says that the call cost."""
    service_tier: str | None = None
    """In which it was served, or at which speed, if that has a price of its own."""
    surcharge: float = 1.0
    """By what the list price is multiplied for where it was served."""
    model: str | None = None
    """Which was served, in the provider's words."""

    @property
    def written(self) -> Iterator[str]:
        """All that the model wrote."""
        yield from (self.text, self.refusal or "")
        for call in self.tool_calls:
            yield from (call.function.name, call.function.arguments)


def tool_calls(told: Iterable[tuple[Any, str, Any]]) -> tuple[ToolCall, ...]:
    """The calls of one answer, of each its id, the name, and the arguments as the model wrote them, or their value.
    Without an id it gets one that no other call has, in this or any other turn of its conversation."""
    calls: list[ToolCall] = []
    for id, name, arguments in told:
        if len(calls) == MAX_TOOL_CALLS:
            raise malformed(f"more than {MAX_TOOL_CALLS} calls of tools")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        function = FunctionCall(name=name, arguments=text or "{}")
        calls.append(ToolCall(id=str(id or uuid4().hex), function=function))
    return tuple(calls)


def arguments(call: ToolCall) -> dict[str, Any]:
    """Those of a call in a conversation, for formats that have them as an object and refuse all else. A model may have
    written anything: what is no object becomes an empty one."""
    told = parse_json(call.function.arguments.encode(errors="surrogatepass"))
    return told if isinstance(told, dict) else {}


def call_id(id: str, wanted: re.Pattern[str] | None) -> str:
    """The id of a tool's call, or what stands for it where another vendor has made it up, and this one refuses such."""
    return id if wanted is None or wanted.fullmatch(id) else sha256(id.encode()).hexdigest()[:9]


class StreamCollector(Protocol):
    """The events of one stream, on their way to the body that the same call would have had without streaming."""

    def add(self, event: dict[str, Any]) -> str:
        """Take the next event. Returns the piece of the answer's text in it, if any."""

    def body(self) -> dict[str, Any] | None:
        """The whole body. None: the stream ended too early."""


def failure_of(answer: Answer, draft: RequestDraft) -> Failure | None:
    """Why the answer is of no use; None: it is, perhaps with one more warning."""
    request = draft.request
    if request.is_embedding:
        if len(answer.embeddings) != len(request.texts):
            return malformed(f"{len(answer.embeddings)} embeddings for {len(request.texts)} texts").failure
        lengths = {len(vector) for vector in answer.embeddings}
        if len(lengths) > 1 or 0 in lengths:
            return malformed(f"embeddings of {', '.join(map(str, sorted(lengths)[:3]))} numbers").failure
        if "dimensions" in draft.used and lengths != {request.dimensions}:  # as of servers that don't look at it
            text = f"{draft.provider} gives {max(lengths)} dimensions, not {request.dimensions}"
            if request.on_unsupported == "fail":
                return Failure(FailureKind.UNSUPPORTED, text, Billed.YES)
            draft.warnings.append(text)
        return None
    if answer.finish is FinishReason.ERROR:
        message = f"the answer ended in an error ({answer.finish_raw})"
        return Failure(FailureKind.SERVER_ERROR, message, Billed.YES)
    # By what the job named, before the first word.
    stopped = "stop" in draft.used and answer.finish is FinishReason.STOP
    if not (answer.text or answer.tool_calls or answer.refusal or stopped or answer.finish is FinishReason.LENGTH):
        if answer.finish is FinishReason.CONTENT_FILTER:
            return filtered(answer.finish_raw, answer.billed)
        return Failure(FailureKind.EMPTY, "an empty answer", Billed.YES)
    return None


def filtered(why: object, billed: Billed = Billed.YES) -> Failure:
    """The provider's policy withheld the answer. `why`: its reason, if it is one word; more might repeat the prompt."""
    word = why if isinstance(why, str) and why.isidentifier() and len(why) <= 40 else "no reason given"
    return Failure(FailureKind.CONTENT_FILTERED, f"filtered: {word}", billed)


def plausible_usage(read: Callable[[Any], Usage], told: Any) -> Usage | None:
    """Tokens as reported; None if they weren't, or make no sense."""
    try:
        used = read(told)
    except Exception:  # told may have any shape at all
        return None
    within_input = used.cache_read_tokens + used.cache_write_tokens <= used.input_tokens
    within_input &= used.cache_write_hour_tokens <= used.cache_write_tokens
    return used if within_input and used.input_tokens > 0 and used.total_tokens <= MAX_CALL_TOKENS else None


def parsed_or_malformed(read: Callable[..., T], *arguments: Any) -> T:
    """What `read` returns. A body can have any shape at all, and `read` may raise anything at one that it can't read:
    raises ProviderError."""
    try:
        return read(*arguments)
    except ProviderError:
        raise
    except KeyError as error:
        raise malformed(f"an answer without {str(error)[:40]}") from None
    except Exception:
        raise malformed("an answer that can't be read") from None
