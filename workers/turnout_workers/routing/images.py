"""How many tokens an image takes: from its size, by the rule of the model that is to see it.

Only the bytes of the file that hold width and height are decoded, never a pixel. Each vendor scales images down in its
own way: a photo of 4,032 × 3,024 takes some 1,100 tokens with Gemini and 14,364 with GPT-6. Sources: OpenAI's guide
"Images and vision", Claude's page "Vision", Gemini's pages on tokens and on media resolution, and where these are vague
the measurements of the data set JOHNISKING/image-token-cost.
"""

from __future__ import annotations

import math
import re
from base64 import b64decode
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from turnout.request import InferenceRequest

LIKELY_TOKENS = 256
"""Expected of an image if its size or the model's rule is unknown. It is low, because a job that seems too long is
refused for good, while a refusal by the provider costs nothing."""
MAX_SEGMENTS = 256
"""Segments of a JPEG to look at for the one that has its size; a photo has some twenty."""
MAX_JOBS = 256
"""Jobs whose images' tokens are remembered."""


class Image(NamedTuple):
    """What decides who accepts an image, and how many tokens it takes."""

    width: int
    """In pixels, like the height; 0: unknown."""
    height: int
    detail: str | None = None
    media_type: str = ""


class Tokens(NamedTuple):
    """How many tokens something takes, as expected and at most."""

    expected: int
    upper: int


class ImageRule(Protocol):
    """How the models of one family count an image whose size is known."""

    def tokens(self, image: Image) -> Tokens: ...

    def __hash__(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """The most that any image takes."""
        ...


@dataclass(frozen=True, slots=True)
class Patches:
    """The image is scaled down to at most `max_patches` squares, each of which takes `factor` tokens."""

    side_px: int
    max_patches: int
    factor: float = 1.0
    max_low: int | None = None
    """With `detail` "low"; None, here and below: `max_patches`."""
    max_high: int | None = None
    max_original: int | None = None

    def tokens(self, image: Image) -> Tokens:
        by_detail = {"low": self.max_low, "high": self.max_high, "original": self.max_original}
        patches = math.ceil(image.width / self.side_px) * math.ceil(image.height / self.side_px)
        count = _times(min(patches, by_detail.get(image.detail or "") or self.max_patches), self.factor)
        return Tokens(count, count)

    @property
    def max_tokens(self) -> int:
        return _times(max(self.max_patches, self.max_original or 0), self.factor)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The image is scaled down to 2,048 px, and its shorter side to 768 px. It takes `each` tokens per 512 × 512 px,
    and `base` for a small copy, which is all that `detail` "low" sends."""

    base: int
    each: int

    def tokens(self, image: Image) -> Tokens:
        scale = min(1.0, 2048 / max(image.width, image.height))
        scale *= min(1.0, 768 / (min(image.width, image.height) * scale))
        tiles = math.ceil(round(image.width * scale) / 512) * math.ceil(round(image.height * scale) / 512)
        count = self.base + (0 if image.detail == "low" else tiles * self.each)
        return Tokens(count, count)

    @property
    def max_tokens(self) -> int:
        return self.base + 8 * self.each


@dataclass(frozen=True, slots=True)
class Crops:
    """Gemini's rule until 2.5: `each` tokens for a small image, otherwise for each square whose side is two thirds of
    the image's shorter side, between 256 and 768 px."""

    each: int

    def tokens(self, image: Image) -> Tokens:
        side_px = min(768.0, max(256.0, min(image.width, image.height) / 1.5))
        crops = math.ceil(image.width / side_px) * math.ceil(image.height / side_px)
        count = self.each * (1 if max(image.width, image.height) <= 384 else crops)
        return Tokens(count, count)

    @property
    def max_tokens(self) -> int:
        return self.each * 24  # a photo of twelve megapixels


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every image takes the same."""

    max_tokens: int

    def tokens(self, image: Image) -> Tokens:
        return Tokens(self.max_tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A model whose rule is unknown: as many tokens as with Qwen, which splits images most finely of all open models
    (28 px, at most 16,384), but at least the 2,048 that some vendors count for any image, as Groq does."""

    max_tokens: int = 16_384

    def tokens(self, image: Image) -> Tokens:
        patches = math.ceil(image.width / 28) * math.ceil(image.height / 28)
        return Tokens(LIKELY_TOKENS, min(self.max_tokens, max(2048, patches)))


def _times(patches: int, factor: float) -> int:
    return math.ceil(round(patches * factor, 6))  # in floats, 2,500 times 1.62 is slightly more than 4,050


UNKNOWN = Unknown()
RULES: tuple[tuple[re.Pattern[str], ImageRule], ...] = tuple(
    (re.compile(rf"(^|[/:.@-])({names})", re.IGNORECASE), rule)
    for names, rule in (
        ("gpt-4o-mini", Tiles(2833, 5667)),
        ("gpt-(4[.]1|5)-mini", Patches(32, 1536, 1.62)),
        ("gpt-(4[.]1|5)-nano", Patches(32, 1536, 2.46)),
        ("o4-mini", Patches(32, 1536, 1.72)),
        ("gpt-5[.]4-(mini|nano)", Patches(32, 2500, 1.62)),
        ("gpt-5[.]5", Patches(32, 10_000, 1.2, max_low=256, max_high=2500)),
        ("gpt-5([.][0-4]|(?![.]))", Patches(32, 2500, 1.2, max_original=10_000)),
        ("gpt-([5-9]|[1-9][0-9])", Patches(32, 30_000, 1.2, max_low=256, max_high=2500)),
        ("gpt-4|o[1-9]", Tiles(85, 170)),
        ("claude-([1-3]|[a-z]+-4(?![-.][7-9]))", Patches(28, 1600)),
        ("claude", Patches(28, 4784)),
        ("gemini-[12]", Crops(258)),
        ("gemini", Fixed(1120)),
    )
)
"""The first whose pattern matches a model's name applies. OpenAI rejects an image of more than 30,000 patches."""


def rule_of(*names: str) -> ImageRule:
    """The rule of a model, by the first of its names that matches one."""
    found = (rule for name in names for pattern, rule in RULES if pattern.search(name))
    return next(found, UNKNOWN)


@lru_cache(MAX_JOBS)
def image_tokens(rule: ImageRule, images: tuple[Image, ...]) -> Tokens:
    """What all images of a job take together, by this rule."""
    unknown = Tokens(min(LIKELY_TOKENS, rule.max_tokens), rule.max_tokens)
    each = [rule.tokens(image) if image.width else unknown for image in images]
    return Tokens(sum(one.expected for one in each), sum(one.upper for one in each))


def images_of(request: InferenceRequest) -> tuple[Image, ...]:
    """All images of a request."""
    parts = (
        part
        for message in request.messages or ()
        if isinstance(message.content, tuple)
        for part in message.content
        if part.type == "image_url"
    )
    return tuple(
        Image(*size_px(data), part.image_url.detail, media_type)
        for part in parts
        for media_type, data in (part.inline,)
    )


def size_px(data: str) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, GIF or WebP in base64; zeros if they can't be read, or one of them is zero, as
    the height of a JPEG may be whose scanner didn't know it yet."""
    try:
        width, height = _size_px(data)
    except ValueError:
        return 0, 0
    return (width, height) if width and height else (0, 0)


def _size_px(data: str) -> tuple[int, int]:
    head = _bytes(data, 0, 30)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if head.startswith(b"GIF8"):
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head.startswith(b"\xff\xd8"):
        return _jpeg_px(data)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return 0, 0
    match head[12:16]:
        case b"VP8 ":
            return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case _:
            return 0, 0


def _jpeg_px(data: str) -> tuple[int, int]:
    """Skip from segment to segment: the one with the size may come after many kilobytes of previews and profiles."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        segment = _bytes(data, at, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        kind = segment[1]
        if kind == 0xFF:  # any number of these may precede a segment
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7])
        else:
            at += 2 + int.from_bytes(segment[2:4])
    return 0, 0


def _bytes(data: str, start: int, count: int) -> bytes:
    """Some bytes from the middle of a base64 text. Raises ValueError if it isn't base64."""
    first, after = start // 3 * 4, math.ceil((start + count) / 3) * 4
    return b64decode(data[first:after])[start % 3 :][:count]
