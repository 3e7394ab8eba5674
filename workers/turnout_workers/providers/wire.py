"""What passes between a wire format and `Connector`: the request being drafted, and the answer in neutral terms."""

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
        # the cost estimate, and money reserved by it, depend on these
        "max_tokens", "max_completion_tokens", "n",
        "maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count",
        "generation_config",  # Gemini also accepts this name for generationConfig, which holds the above
    }
)  # fmt: skip
"""Fields that a job's extras can't set."""
MAX_TOOL_CALLS = 1000
"""Tool calls in one answer."""
MAX_CALL_TOKENS = 1e9
"""A provider that reports more tokens for one call is not believed."""


@dataclass(slots=True)
class RequestDraft:
    """One request while a wire format writes it, and warnings about what was dropped from it."""

    request: InferenceRequest
    provider: str
    parameters: frozenset[str]
    warnings: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def supports(self, name: str) -> bool:
        """Whether the provider supports this parameter. If not, it is dropped with a warning, or the call fails."""
        if name in self.parameters:
            self.used.append(name)
            return True
        text = f"{self.provider} does not support {name}"
        if self.request.on_unsupported == "fail":
            raise ProviderError.unsupported(text)
        self.warnings.append(f"{text}; it was dropped")
        return False

    def value(self, name: str) -> Any:
        """A parameter's value. None: the request doesn't set it, or the provider doesn't support it."""
        value = getattr(self.request, name)
        return value if value not in (None, ()) and self.supports(name) else None

    def values(self, *same: str, **renamed: str) -> dict[str, Any]:
        """The parameters that the request sets and the provider supports, by its names for them: `top_p="topP"`."""
        names = dict(zip(same, same, strict=True)) | renamed
        return {theirs: value for name, theirs in names.items() if (value := self.value(name)) is not None}

    def extras(self) -> dict[str, Any]:
        """The job's extra fields for this provider, and those for any provider that supports them."""
        own = self.request.extras.get(self.provider, {})
        others = self.request.extras.get(ANY_PROVIDER, {})
        return {name: value for name, value in others.items() if name not in own and self.supports(name)} | own

    def warn_about_images(self, *roles: str) -> None:
        """Warn if messages of these roles hold images: the format has no place for them, so they are dropped."""
        for role in roles:
            if any(sender == role for sender, _ in self._images()):
                self.supports(f"an image in a message of role {role}")

    def image_details(self) -> set[str | None]:
        """The details that all images ask for; None for an image that asks for none."""
        return {image.image_url.detail for _, image in self._images()}

    def _images(self) -> Iterator[tuple[str, ImagePart]]:
        """All images, each with the role of its message."""
        for message in self.request.messages or ():
            if isinstance(message.content, tuple):
                yield from ((message.role, part) for part in message.content if isinstance(part, ImagePart))

    def with_extras(self, body: Mapping[str, Any], extras: Mapping[str, Any]) -> dict[str, Any]:
        """The body with the job's extra fields. Tables are merged field by field."""
        merged = dict(body)
        for name, value in extras.items():
            if name in PROTECTED:
                self.warnings.append(f"extras can't set {name}; it was dropped")
            elif isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = self.with_extras(merged[name], value)
            else:
                merged[name] = value
        return merged


def conversation(
    request: InferenceRequest, model: str, parts: Callable[[Message], list[T]]
) -> tuple[str, list[tuple[str, list[T]]]]:
    """The system messages as one text, for formats that have a separate field for it, and the turns. If there are only
    system messages, they become a user's turn, because these formats demand one."""
    system = "\n\n".join(message.text for message in request.chat if message.role in ("system", "developer"))
    if turns := list(_turns(request, model, parts)):
        return system, turns
    return "", [("user", parts(Message(role="user", content=system)))]


def _turns(request: InferenceRequest, model: str, parts: Callable[[Message], list[T]]) -> Iterator[tuple[str, list[T]]]:
    """The other messages in turns: the role (`model` or "user", who also reports tool results), and the parts of its
    messages. Empty turns are dropped, because these formats refuse them. A turn begins with tool results, as Claude
    demands, in the order of their calls, because Gemini identifies them only by function name."""
    calls = [call.id for message in request.chat for call in message.tool_calls]
    order = {id: number for number, id in enumerate(calls)}
    others = (message for message in request.chat if message.role not in ("system", "developer"))
    for role, turn in groupby(others, lambda message: model if message.role == "assistant" else "user"):
        ordered = sorted(turn, key=lambda message: order.get(message.tool_call_id or "", len(calls)))
        if content := [part for message in ordered for part in parts(message)]:
            yield role, content


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer in neutral terms, as far as its body has it."""

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
    """None: not reported, or not plausible."""
    cost_usd: float | None = None
    """The cost that the provider reports."""
    service_tier: str | None = None
    """The tier, or speed with its own price, that served the call."""
    surcharge: float = 1.0
    """Factor on the list price for where the call was served."""
    model: str | None = None
    """The model that answered, by the provider's name."""

    @property
    def written(self) -> Iterator[str]:
        """Everything that the model wrote."""
        yield from (self.text, self.refusal or "")
        for call in self.tool_calls:
            yield from (call.function.name, call.function.arguments)


def tool_calls(raw: Iterable[tuple[Any, str, Any]]) -> tuple[ToolCall, ...]:
    """The calls of one answer, from their ids, names, and arguments as JSON text or value. A call without an id gets
    one that is unique in its conversation."""
    calls: list[ToolCall] = []
    for id, name, arguments in raw:
        if len(calls) == MAX_TOOL_CALLS:
            raise malformed(f"more than {MAX_TOOL_CALLS} tool calls")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        function = FunctionCall(name=name, arguments=text or "{}")
        calls.append(ToolCall(id=str(id or uuid4().hex), function=function))
    return tuple(calls)


def arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call as an object, for formats that accept nothing else. A model may have written anything:
    what isn't an object becomes an empty one."""
    value = parse_json(call.function.arguments.encode(errors="surrogatepass"))
    return value if isinstance(value, dict) else {}


def call_id(id: str, wanted: re.Pattern[str] | None) -> str:
    """The id of a tool call, or a hash of it, if another vendor's id is in a form that this one refuses."""
    return id if wanted is None or wanted.fullmatch(id) else sha256(id.encode()).hexdigest()[:9]


class StreamCollector(Protocol):
    """Assembles the events of one stream into the body that the same call would have had without streaming."""

    def add(self, event: dict[str, Any]) -> str:
        """Add the next event. Returns the piece of the answer's text in it, if any."""

    def body(self) -> dict[str, Any] | None:
        """The whole body. None: the stream ended early."""


def failure_of(answer: Answer, draft: RequestDraft) -> Failure | None:
    """Why the answer can't be used. None: it can, perhaps with one more warning."""
    request = draft.request
    if request.is_embedding:
        if len(answer.embeddings) != len(request.texts):
            return malformed(f"{len(answer.embeddings)} embeddings for {len(request.texts)} texts").failure
        lengths = {len(vector) for vector in answer.embeddings}
        if len(lengths) > 1 or 0 in lengths:
            return malformed(f"embeddings of {', '.join(map(str, sorted(lengths)[:3]))} numbers").failure
        if "dimensions" in draft.used and lengths != {request.dimensions}:  # the server ignored it
            text = f"{draft.provider} returned {max(lengths)} dimensions, not {request.dimensions}"
            if request.on_unsupported == "fail":
                return Failure(FailureKind.UNSUPPORTED, text, Billed.YES)
            draft.warnings.append(text)
        return None
    if answer.finish is FinishReason.ERROR:
        message = f"the answer ended in an error ({answer.finish_raw})"
        return Failure(FailureKind.SERVER_ERROR, message, Billed.YES)
    # A stop sequence of the job may come before the first word.
    stopped = "stop" in draft.used and answer.finish is FinishReason.STOP
    if not (answer.text or answer.tool_calls or answer.refusal or stopped or answer.finish is FinishReason.LENGTH):
        if answer.finish is FinishReason.CONTENT_FILTER:
            return filtered(answer.finish_raw, answer.billed)
        return Failure(FailureKind.EMPTY, "an empty answer", Billed.YES)
    return None


def filtered(why: object, billed: Billed = Billed.YES) -> Failure:
    """The provider's policy withheld the answer. why: its reason. Only a single word is shown; more might repeat the
    prompt."""
    word = why if isinstance(why, str) and why.isidentifier() and len(why) <= 40 else "no reason given"
    return Failure(FailureKind.CONTENT_FILTERED, f"filtered: {word}", billed)


def plausible_usage(parse: Callable[[Any], Usage], raw: Any) -> Usage | None:
    """Tokens as reported. None if they weren't, or make no sense."""
    try:
        used = parse(raw)
    except Exception:  # raw may have any shape
        return None
    within_input = used.cache_read_tokens + used.cache_write_tokens <= used.input_tokens
    within_input &= used.cache_write_hour_tokens <= used.cache_write_tokens
    return used if within_input and used.input_tokens > 0 and used.total_tokens <= MAX_CALL_TOKENS else None


def parsed_or_malformed(parse: Callable[..., T], *arguments: Any) -> T:
    """What `parse` returns. A body can have any shape, so `parse` may raise anything: it becomes a ProviderError."""
    try:
        return parse(*arguments)
    except ProviderError:
        raise
    except KeyError as error:
        raise malformed(f"an answer without {str(error)[:40]}") from None
    except Exception:
        raise malformed("an answer that can't be read") from None
