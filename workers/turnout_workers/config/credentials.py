"""Where API keys and signing secrets come from: the file itself, the environment, or files that either names."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path

from turnout_workers.config.tables import ProviderTable, WebhookTable
from turnout_workers.config.toml_lines import ConfigError
from turnout_workers.providers.account import Secret


def api_keys(table: ProviderTable, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The keys, one account each. None if a provider (a local one) needs no key. Raises ConfigError."""
    found = tuple(dict.fromkeys(_api_keys(table, environ)))
    if not all(re.fullmatch(r"[!-~]+", key) for key in found):
        raise ConfigError("an API key is empty, or holds spaces or characters that no header can carry")
    return found


def placeholder_keys(table: ProviderTable) -> tuple[str, ...]:
    """Placeholders if the keys aren't at hand, because each key is an account with its own endpoints."""
    return tuple(f"key-{number}" for number, _ in enumerate((*table.api_key, *table.api_key_env, *table.api_key_file)))


def key_locations(table: ProviderTable) -> tuple[str, ...]:
    """Where the keys are, for people: variables and files. Empty if in the configuration, or if none is needed."""
    named = (*table.api_key_env, *table.api_key_file)
    return named if _names_its_keys(table) else table.preset.key_variables


def _names_its_keys(table: ProviderTable) -> bool:
    """Whether the table says where its keys are. Otherwise the preset's variables are used, only with its address."""
    return bool(table.api_key or table.api_key_env or table.api_key_file or (table.base_url and table.preset.base_url))


def _api_keys(table: ProviderTable, environ: Mapping[str, str]) -> Iterator[str]:
    yield from table.api_key
    for variable in table.api_key_env:
        if (key := _variable(variable, environ)) is None:
            raise ConfigError(f"environment variable {variable} is not set; set it, or remove this provider")
        yield key
    for file in table.api_key_file:
        yield secret_text(file, f"api_key_file {file}")
    if _names_its_keys(table):
        return
    if variables := table.preset.key_variables:
        keys = (_variable(variable, environ) for variable in variables)
        if (key := next(filter(None, keys), None)) is None:
            wanted = " or ".join(variables)
            raise ConfigError(f"there is no key: set {wanted}, or say where it is in api_key_env or api_key_file")
        yield key


def signing_secret(table: WebhookTable, environ: Mapping[str, str]) -> Secret:
    """The secret that signs a webhook's deliveries. Raises ConfigError."""
    secret = _variable(table.secret_env, environ) or ""
    try:
        is_valid = len(b64decode(secret.removeprefix("whsec_"), validate=True)) >= 24
    except ValueError:
        is_valid = False
    if not is_valid:
        wanted = "whsec_ and the base64 of 24 to 64 random bytes"
        name = table.secret_env
        raise ConfigError(f"no signing secret in {name}, or in the file that {name}_FILE names: it must be {wanted}")
    return Secret(secret)


def _variable(name: str, environ: Mapping[str, str]) -> str | None:
    """The key in an environment variable, or in the file that the variable NAME_FILE names."""
    if key := environ.get(name, "").strip():
        return key
    file = environ.get(f"{name}_FILE")
    return secret_text(file, f"{name}_FILE={file}") if file else None


def secret_text(file: str, named: str) -> str:
    """The content of a file that holds a secret. named: the setting and the file, for the ConfigError."""
    try:
        return Path(file).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{named} can't be read: {reason}; name a file that holds the key") from None
