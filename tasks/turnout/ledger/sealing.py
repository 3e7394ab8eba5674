"""Encryption of content in Redis: requests and answers, sealed with AES-256-GCM.

Producers and workers have the keys in their environment: `TURNOUT_PAYLOAD_KEYS` holds `ID:BASE64` entries of 32 random
bytes each, separated by spaces, `TURNOUT_PAYLOAD_KEYS_FILE` the path of a file of such lines. The first key seals, all
of them open. So a new one is first appended everywhere, then moved to the front, and the old one removed when
everything that it sealed has expired. Without keys, nothing is sealed. Needs the extra `turnout[encryption]`.

Content is sealed under a name, of a job and a part of it: under another name, or changed, it can't be opened.
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
    """One key. Its repr doesn't show the secret."""

    ref: str
    """Its id and a hash, so that another key with the same id isn't taken for it."""
    secret: bytes = field(repr=False)


class Keyring:
    """The known keys; the first one seals."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = {key.ref: key for key in keys}
        self.ref = keys[0].ref if keys else None
        """The key that seals; None without keys."""
        self._cipher: Any = _cipher() if keys else None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Keyring:
        """The keys in the environment. Raises TurnoutError for an invalid key."""
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
        """By which Redis refers to the keys."""
        return tuple(self._keys)

    def seal(self, name: str, content: bytes) -> bytes:
        """The content, sealed under this name; unchanged without keys."""
        if self.ref is None:
            return content
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = self._cipher(_derived(self._keys[self.ref], name)).encrypt(nonce, content, None)
        return b"%b%b:%b%b" % (MARK, self.ref.encode(), nonce, sealed)

    def open(self, name: str, stored: bytes) -> bytes:
        """Content that was sealed under this name, or stored before there were keys. Raises Unreadable."""
        if not stored.startswith(MARK):
            return stored
        ref, _, sealed = stored[len(MARK) :].partition(b":")
        key = self._keys.get(ref.decode("ascii", "replace"))
        if key is None:
            raise Unreadable(name, ref.decode("ascii", "replace"), self.refs)
        try:
            content: bytes = self._cipher(_derived(key, name)).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except Exception as error:  # cryptography's InvalidTag, or too short for a tag
            raise Unreadable(name, None, ()) from error
        return content


def _derived(key: Key, name: str) -> bytes:
    """A key for this name alone, so that few random nonces are used with it, and sealed content can't be moved."""
    return hmac.digest(key.secret, b"turnout " + name.encode(), hashlib.sha256)


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
            "TURNOUT_PAYLOAD_KEYS is set, but the package that seals isn't installed: pip install 'turnout[encryption]'"
        ) from None
    return AESGCM
