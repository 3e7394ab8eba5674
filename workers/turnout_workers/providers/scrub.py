"""Keeping keys and prompts out of providers' error messages, which may repeat both."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile

from turnout.messages import ImagePart
from turnout.printable import printable
from turnout.request import InferenceRequest

_KEY = re.compile(r"\b(?:sk|gsk|key|AIza|xai|r8|csk|fw|tgp)[-_][A-Za-z0-9_*.-]{8,}|\bAIza[A-Za-z0-9_-]{20,}")
_CODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_ENTITY = re.compile(r"&[#\w]{2,32};")
_USUAL = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&#39;": "'"}
"""Entities of which a prompt may be full. Replacing them directly takes a tenth of the time of looking them up."""
MAX_ESCAPES = 4
"""How many times over a text may be escaped as HTML and still be recognized."""
MAX_MESSAGE_LENGTH = 500
IMAGE_PREFIX = 4000
"""How much of an image is searched for. Vendors repeat the beginning of what they object to, and images are long."""
PIECE_LENGTH = 16
"""Length of the aligned pieces by which message and prompt are compared. Repetitions of twice that length hold one."""


def scrubbed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """A provider's message without our key, anything like a key, or parts of the prompt: one line, bounded."""
    if not text:
        return text
    text = text[: 4 * MAX_MESSAGE_LENGTH]
    plain = _plain(text)
    cleared = _without_secrets(plain, map(_plain, secrets))
    if cleared != plain:
        text = cleared
    elif text != plain:
        text = _without_secrets(text, secrets)
    text = _KEY.sub("…", " ".join(printable(text).split()))
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[: MAX_MESSAGE_LENGTH - 1]}…"


def _plain(text: str) -> str:
    """The unescaped text: vendors repeat it as JSON or HTML, or as JSON in JSON, and break lines elsewhere.

    The result is the same however often it was escaped. A prompt may have a megabyte, and all calls wait meanwhile:
    hence plain replacements of all occurrences, and only those that are needed.
    """
    if "\\" in text:
        text = _once(text, "\\")
        for letter in "nrt":
            text = text.replace(f"\\{letter}", " ")
        text = _CODE.sub(lambda code: chr(int(code[1], 16)), text).replace("\\", "")
    for _ in range(MAX_ESCAPES if "&" in text else 0):
        before = text
        for entity, character in _USUAL.items():
            text = text.replace(entity, character)
        if before == (text := _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)):
            break
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # surrogate pairs become one character
    for space in "\n\r\t":
        text = text.replace(space, " ")
    return _once(text, " ").strip()


def _once(text: str, character: str) -> str:
    """The text with runs of the character reduced to one."""
    while 2 * character in text:
        text = text.replace(2 * character, character)
    return text


def _without_secrets(text: str, secrets: Iterable[str]) -> str:
    pieces = _pieces(text)
    for secret in secrets:
        if len(secret) >= 8:
            text = text.replace(secret, "…")
        # The prompt's pieces are looked up among the message's: searching a long prompt for each takes longer.
        if len(secret) >= 2 * PIECE_LENGTH and not pieces.isdisjoint(_pieces(secret, PIECE_LENGTH)):
            text = _without_pieces(text, secret)
    return text


def _pieces(text: str, step: int = 1) -> set[str]:
    return {text[at : at + PIECE_LENGTH] for at in range(0, len(text) - PIECE_LENGTH + 1, step)}


def _without_pieces(text: str, secret: str) -> str:
    """The text without longer pieces of the secret. Vendors repeat the beginning of a prompt, or part of its middle."""
    kept, at = "", 0
    while at < len(text):
        piece = text[at : at + PIECE_LENGTH]
        found = secret.find(piece) if len(piece) == PIECE_LENGTH else -1
        if found < 0:
            kept, at = kept + piece, at + PIECE_LENGTH
            continue
        before = _common(reversed(kept), reversed(secret[max(0, found - PIECE_LENGTH) : found]))
        after = _common(text[at:], secret[found : found + len(text)])
        kept, at = f"{kept[: len(kept) - before]}…", at + after
    return kept


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def prompt_texts(request: InferenceRequest) -> Iterator[str]:
    """The caller's content, which no error message may repeat."""
    yield from request.texts
    for message in request.chat:
        yield message.text
        yield message.reasoning_content or ""
        yield from (call.function.arguments for call in message.tool_calls)
        if isinstance(message.content, tuple):
            yield from (part.image_url.url[:IMAGE_PREFIX] for part in message.content if isinstance(part, ImagePart))
