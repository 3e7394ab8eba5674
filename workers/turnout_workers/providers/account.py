"""One configured account of a provider, and its key, which is never shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from pydantic import SecretStr

from turnout_workers.routing.fleet import Endpoint


class Secret(SecretStr):
    """A key. No repr, format, JSON or pickle shows it; `reveal` is for the header it belongs in."""

    reveal = SecretStr.get_secret_value

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret can't be pickled or copied")


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """How to reach one account of one provider, and what it offers there."""

    name: str
    kind: str
    """The wire format: openai, anthropic, gemini, or one that another package registers."""
    base_url: str
    endpoints: tuple[Endpoint, ...]
    dialect: str | None = None
    """Name of the preset. None: the plain wire format."""
    api_key: Secret | None = None
    version: str | None = None
    """Version of the provider's API, if it has one. None: the wire format's default."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Sent with every request. Not shown either, because they may hold credentials."""
    service_tier: str | None = None
    """Requested in every call. None: the provider's default."""
    proxy: str | None = field(default=None, repr=False)
    traceparent: bool = False
    """Whether calls carry `traceparent`."""
