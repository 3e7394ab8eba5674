"""One configured account of a provider, and its key, which nothing ever shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from pydantic import SecretStr

from turnout_workers.routing.fleet import Endpoint


class Secret(SecretStr):
    """A key. It shows itself in no repr, format, JSON or pickle; `reveal` is for the header it belongs in."""

    reveal = SecretStr.get_secret_value

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not to be pickled or copied")


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """How to reach one account of one provider, and what it offers there."""

    name: str
    kind: str
    """The wire format: openai, anthropic, gemini, or one that another package registers."""
    base_url: str
    endpoints: tuple[Endpoint, ...]
    dialect: str | None = None
    """The preset, by name; None: the plain form of the wire format."""
    api_key: Secret | None = None
    version: str | None = None
    """Of the provider's API, where it has one; None: the wire format's usual one."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Sent with every request; they may hold credentials, so they aren't shown either."""
    service_tier: str | None = None
    """Asked for in every call; None: the provider's usual one."""
    proxy: str | None = field(default=None, repr=False)
    traceparent: bool = False
    """Whether calls carry `traceparent`."""
