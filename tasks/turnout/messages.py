"""Conversations, tools and the format of an answer, in the shape of OpenAI's chat format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator

from turnout.value import Name, Several, Value

ModelClass = type[BaseModel]  # an alias, because the classes below have a field named `type`


class TextPart(Value):
    type: Literal["text"]  # no default, here and below: parts stored without it couldn't be told apart
    text: str


NOT_INLINE = "must be a data:image/…;base64,… URI; remote images are not fetched"
_INLINE = re.compile(r"data:image/[\w.+-]+\s*(;[^,;]*)*;\s*base64,\s*[\w+/-]", re.ASCII | re.IGNORECASE)
"""No repetition takes what its neighbours take as well; otherwise a short URL could keep a worker busy for days."""
_SPACES = (" ", "\n", "\r", "\t")


def is_inline(url: Any) -> bool:
    return isinstance(url, str) and _INLINE.match(url) is not None


class ImageUrl(Value):
    url: str
    """A `data:` URI. Remote URLs are refused, so that a job can't make a worker fetch them, nor a provider, except by
    its `extras`."""
    detail: Literal["auto", "low", "high", "original"] | None = None

    @field_validator("url")
    @classmethod
    def _inline_only(cls, url: str) -> str:
        if not is_inline(url):
            raise ValueError(NOT_INLINE)
        # What a URI may hold, and vendors may refuse: capitals in its head, line breaks in its data.
        if any(space in url for space in _SPACES):
            url = "".join(url.split())
        head = url[: url.index(",")]
        return url if head.islower() else head.lower() + url[len(head) :]


class ImagePart(Value):
    type: Literal["image_url"]
    image_url: ImageUrl

    @property
    def inline(self) -> tuple[str, str]:
        """Media type and base64 data."""
        head, _, data = self.image_url.url.partition(",")
        media_type = head.removeprefix("data:").partition(";")[0]
        return "image/jpeg" if media_type == "image/jpg" else media_type, data


class FunctionCall(Value):
    name: Name
    arguments: str = "{}"
    """The arguments as JSON, exactly as the model wrote them (it may be invalid)."""


class ToolCall(Value):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Value):
    """One message, in the shape of OpenAI's chat format, which most users already have."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Several[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None
    name: str | None = None
    tool_calls: Several[ToolCall] = ()
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(default=None, repr=False)
    """In an answer: the model's reasoning before it called tools. Sent only to providers that demand it back."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, fields: Any) -> Any:
        """Answers of OpenAI's API that are sent back as history have many empty fields."""
        if not isinstance(fields, Mapping) or not any(one is None or isinstance(one, list) for one in fields.values()):
            return fields
        filled = {name: value for name, value in fields.items() if value is not None and value != []}
        # Pydantic's strict mode accepts a JSON list for a tuple only if no validator ran before it.
        return {name: tuple(value) if isinstance(value, list) else value for name, value in filled.items()}

    @property
    def content_or_refusal(self) -> str | tuple[TextPart | ImagePart, ...] | None:
        """The content. For an answer that was only a refusal, the refusal: hardly any vendor takes it as a field."""
        return self.refusal if self.refusal and not self.content else self.content

    @property
    def parts(self) -> tuple[TextPart | ImagePart, ...]:
        content = self.content_or_refusal
        if content is None or isinstance(content, str):
            return (TextPart(type="text", text=content),) if content else ()
        return content

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


class FunctionDefinition(Value):
    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Value):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class ResponseFormat(Value):
    """What the answer must be: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    description: str | None = None
    """What the answer is for, shown to the model."""
    json_schema: dict[str, JsonValue] | None = None
    strict: bool | None = None
    """Whether the provider's strict mode is used; None: if the schema allows it."""
    max_repairs: int = Field(default=1, ge=0, le=5)
    """How often an answer that fails its schema is asked for again before the job fails as malformed."""

    @model_validator(mode="before")
    @classmethod
    def _from_openais_shape(cls, fields: Any) -> Any:
        """There, `json_schema` holds the schema with its name."""
        inner = fields.get("json_schema") if isinstance(fields, Mapping) else None
        if not isinstance(inner, Mapping) or ("schema" not in inner and "name" not in inner):
            return fields
        named = {name: value for name, value in inner.items() if value is not None}
        return {**fields, "json_schema": named.pop("schema", None), **named}

    @model_validator(mode="after")
    def _schema_if_needed(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with type 'json_schema', and only then")
        return self

    @classmethod
    def of(cls, model: ModelClass) -> Self:
        """JSON with a pydantic model's schema. Read the answer with `InferenceResponse.parsed`."""
        schema = model.model_json_schema()
        name = re.sub(r"[^A-Za-z0-9_-]", "_", model.__name__)[:64]  # a generic model: `Page[Ticket]`
        result = cls(type="json_schema", name=name, json_schema=schema)
        return result.model_copy(update={"strict": result.is_strict})  # explicit, because older workers assumed it

    @property
    def is_strict(self) -> bool:
        """Whether to use the provider's strict mode."""
        if self.strict is not None:
            return self.strict
        schema = self.json_schema or {}
        return schema.get("type") == "object" and _is_closed(schema)

    @property
    def described_schema(self) -> dict[str, JsonValue] | None:
        """The schema with the description in it, for formats that have no other place for it."""
        if self.json_schema is None or self.description is None:
            return self.json_schema
        return {"description": self.description, **self.json_schema}


SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")
"""Keywords of a JSON schema that hold further schemas by name; a name may itself look like a keyword."""
_NEVER_STRICT = frozenset(
    {
        "oneOf", "allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
        "propertyNames", "unevaluatedProperties", "prefixItems", "unevaluatedItems", "contains", "uniqueItems",
        "default",
    }
)  # fmt: skip
"""Keywords that OpenAI's strict mode refuses."""


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether a JSON schema describes an object, or something that may be one."""
    types = schema.get("type")
    return types == "object" or (isinstance(types, list) and "object" in types)


def _is_closed(schema: JsonValue) -> bool:
    """Whether every object in it is closed and requires all of its fields, and OpenAI's strict mode refuses nothing
    else in it."""
    if isinstance(schema, list):
        return all(map(_is_closed, schema))
    if not isinstance(schema, dict):
        return True
    if not _NEVER_STRICT.isdisjoint(schema) or ("$ref" in schema and len(schema) > 1):
        return False
    if is_object(schema):
        fields, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(fields, dict) or not isinstance(required, list):
            return False
        if schema.get("additionalProperties") is not False or {*fields} != {*map(str, required)}:
            return False
    parts = [
        list(value.values()) if name in SCHEMAS_BY_NAME and isinstance(value, dict) else value
        for name, value in schema.items()
    ]
    return all(map(_is_closed, parts))
