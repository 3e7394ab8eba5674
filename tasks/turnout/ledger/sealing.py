"""Encryption of content in Redis: what was asked and what was answered, sealed with AES-256-GCM.

The environment names the keys, of producers and workers alike: `TURNOUT_PAYLOAD_KEYS` holds `ID:BASE64` entries of
32 random bytes each, with spaces between, `TURNOUT_PAYLOAD_KEYS_FILE` the path of a file of such lines. The first key
seals, all of them open; so a new one is first added last everywhere, then put first, and the old one removed when all
that it sealed has expired. Without keys, nothing is sealed. Needs the extra `turnout[encryption]`.

What is sealed belongs to its place, a job and a part of it: elsewhere, or changed, it can't be opened.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnout.errors import TurnoutError, Unreadable

MARK = b"sealed:"
NONCE_BYTES = 12
KEY_BYTES = 32
_ENTRY = re.compile(r"([A-Za-z0-9_.-]{1,32}):([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class Key:
    """One key. It never shows itself."""

    ref: str
    """Its id, and a hash of it, so that another key of the same id is not taken for it."""
    secret: bytes = field(repr=False)


class Keyring:
    """The known keys; the first one seals."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = {key.ref: key for key in keys}
        self.ref = keys[0].ref if keys else None
        """The name of the key that seals; None without keys."""
        self._cipher: Any = _cipher() if keys else None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Keyring:
        """The keys that the environment names. Raises TurnoutError for what is no key."""
        name, entries = "TURNOUT_PAYLOAD_KEYS", environ.get("TURNOUT_PAYLOAD_KEYS", "")
        if path := environ.get("TURNOUT_PAYLOAD_KEYS_FILE"):
            name = f"TURNOUT_PAYLOAD_KEYS_FILE {path}"
            try:
                entries = Path(path).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TurnoutError(f"{name} can't be read: {type(error).__name__}") from None
            if not entries.strip():
                raise TurnoutError(f"{name} holds no key; to seal nothing, unset it")
        return cls(tuple(_key(entry, f"{name}, entry {n}") for n, entry in enumerate(entries.split(), 1)))

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def refs(self) -> tuple[str, ...]:
        """The names under which Redis refers to the keys."""
        return tuple(self._keys)

    def seal(self, place: str, content: bytes) -> bytes:
        """The content, sealed to be stored at this place; unchanged if there is no key."""
        if self.ref is None:
            return content
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = self._cipher(_derived(self._keys[self.ref], place)).encrypt(nonce, content, None)
        return b"%b%b:%b%b" % (MARK, self.ref.encode(), nonce, sealed)

    def open(self, place: str, stored: bytes) -> bytes:
        """What was sealed for this place, or stored there before there were keys. Raises Unreadable."""
        if not stored.startswith(MARK):
            return stored
        ref, _, sealed = stored[len(MARK) :].partition(b":")
        key = self._keys.get(ref.decode("ascii", "replace"))
        if key is None:
            raise Unreadable(place, ref.decode("ascii", "replace"), self.refs)
        try:
            content: bytes = self._cipher(_derived(key, place)).decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None
            )
        except Exception as error:  # cryptography's InvalidTag, or too short for any
            raise Unreadable(place, None, ()) from error
        return content


def _derived(key: Key, place: str) -> bytes:
    """A key for this place alone, so that few random nonces are used with it, and nothing sealed can be moved."""
    return hmac.digest(key.secret, b"turnout " + place.encode(), hashlib.sha256)


def _key(entry: str, where: str) -> Key:
    match = _ENTRY.fullmatch(entry)
    try:
        secret = base64.b64decode(match[2], validate=True) if match else b""
    except ValueError:
        secret = b""
    if match is None or len(secret) != KEY_BYTES:
        raise TurnoutError(
            f"{where}: must be ID:BASE64 of {KEY_BYTES} random bytes, as `openssl rand -base64 32` makes"
        )
    return Key(f"{match[1]}#{hashlib.sha256(secret).hexdigest()[:8]}", secret)


def _cipher() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError:
        raise TurnoutError(
            "TURNOUT_PAYLOAD_KEYS is set, and the package that seals isn't installed: pip install 'turnout[encryption]'"
        ) from None
    return AESGCM
