"""Keeping keys and prompts out of what providers say: their error messages may repeat both."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile

from turnout.messages import ImagePart
from turnout.request import InferenceRequest

_KEY = re.compile(r"\b(?:sk|gsk|key|AIza|xai|r8|csk|fw|tgp)[-_][A-Za-z0-9_*.-]{8,}|\bAIza[A-Za-z0-9_-]{20,}")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
ESCAPED = 4
"""How often over a text may be escaped that is still to be known again."""
MESSAGE_LENGTH = 500
REPEATED = 4000
"""How much of an image is looked for: vendors repeat the beginning of what they object to, and images are long."""
PIECE = 16
"""Length of the aligned pieces of a message that are looked for in the prompt: every repetition of twice as many
characters holds one."""


def scrubbed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The provider's words without our key, what looks like one, or a repetition of the prompt; one line, bounded."""
    text = text[: 4 * MESSAGE_LENGTH]
    plain = _plain(text)
    cleared = _cleared(plain, map(_plain, secrets))
    text = cleared if cleared != plain else _cleared(text, secrets)
    text = "".join(c if c.isprintable() else " " for c in text)  # a terminal would obey the others
    text = _KEY.sub("…", " ".join(text.split()))
    return text if len(text) <= MESSAGE_LENGTH else f"{text[: MESSAGE_LENGTH - 1]}…"


def _plain(text: str) -> str:
    """The text as it is read: vendors repeat it as JSON or HTML, or as JSON in JSON, and break lines elsewhere."""
    for _ in range(ESCAPED):
        if text == (text := html.unescape(_ESCAPE.sub(_character, text))):
            break
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs of escapes are one character
    return " ".join(text.split())


def _character(escape: re.Match[str]) -> str:
    code, letter = escape.groups()
    return chr(int(code, 16)) if code else " " if letter in "nrt" else letter


def _cleared(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) >= 8:
            text = text.replace(secret, "…")
        if len(secret) >= 2 * PIECE:
            text = _without(text, secret)
    return text


def _without(text: str, secret: str) -> str:
    """The text without longer pieces of the secret: vendors repeat the beginning of a prompt, or some of its middle."""
    kept, at = "", 0
    while at < len(text):
        piece = text[at : at + PIECE]
        found = secret.find(piece) if len(piece) == PIECE else -1
        if found < 0:
            kept, at = kept + piece, at + PIECE
            continue
        before = _common(reversed(kept), reversed(secret[max(0, found - PIECE) : found]))
        after = _common(text[at:], secret[found : found + len(text)])
        kept, at = f"{kept[: len(kept) - before]}…", at + after
    return kept


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    """How many characters are the same at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def contents(request: InferenceRequest) -> Iterator[str]:
    """The caller's content, which no error may repeat."""
    yield from request.texts
    for message in request.chat:
        yield message.text
        yield from (call.function.arguments for call in message.tool_calls)
        if isinstance(message.content, tuple):
            yield from (part.image_url.url[:REPEATED] for part in message.content if isinstance(part, ImagePart))
