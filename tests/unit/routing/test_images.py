"""Sizes of images as their files tell them, and what models count for them."""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Any

import pytest
from tests.unit.routing.fleets import chosen, decide, endpoint, reasons, view

from turnout.request import InferenceRequest
from turnout_workers.routing.eligibility import upper_cost_microusd
from turnout_workers.routing.fleet import Limits, Load, Price
from turnout_workers.routing.images import RULES, UNKNOWN, Image, Tokens, image_tokens, images_of, rule_of, size_px
from turnout_workers.routing.profile import JobProfile

PHOTO = (4032, 3024)


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", 2 + len(body)) + body


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\0\0\0"


def jpeg(width: int, height: int, *before: bytes) -> bytes:
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0" * 3)
    return b"\xff\xd8" + b"".join(before) + frame + segment(0xDA, b"\0" * 10)


def webp(chunk: bytes, body: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + chunk + struct.pack("<I", len(body)) + body


PREVIEW = segment(0xE1, b"Exif\0\0" + png(160, 120) + b"\xff\xc0\0\x11\x08\0\x78\0\xa0" + b"\0" * 60_000)
HEADS = {
    "png": png(*PHOTO),
    "jpeg": jpeg(*PHOTO),
    "jpeg behind a preview and profiles": jpeg(*PHOTO, PREVIEW, segment(0xE2, b"\0" * 65_000), segment(0xC4, b"\0")),
    "jpeg with fill bytes": jpeg(*PHOTO, b"\xff\xff"),
    "gif": b"GIF89a" + struct.pack("<HH", *PHOTO) + b"\0" * 20,
    "webp, lossy": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", *PHOTO)),
    "webp, lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", 4031 | 3023 << 14) + b"\0" * 5),
    "webp, extended": webp(b"VP8X", b"\0\0\0\0" + (4031).to_bytes(3, "little") + (3023).to_bytes(3, "little")),
}
FLAWED = {
    "nothing": b"",
    "heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
    "half a head of png": png(*PHOTO)[:14],
    "jpeg that ends before its frame": jpeg(*PHOTO, PREVIEW)[:5000],
    "jpeg whose segments have no length": b"\xff\xd8" + b"\xff\xe0\0\0" * 1000,
    "webp of another kind": webp(b"VP9 ", b"\0" * 20),
    "png without height": png(5, 0),
    "png without width": png(0, 5),
    "jpeg that tells its height after its pixels": jpeg(5, 0),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_width_and_height_are_read_from_the_head_of_each_format(head: bytes) -> None:
    assert size_px(b64encode(head + b"pixels" * 100).decode()) == PHOTO


@pytest.mark.parametrize("head", FLAWED.values(), ids=FLAWED)
def test_an_image_that_does_not_tell_its_size_has_none(head: bytes) -> None:
    assert size_px(b64encode(head).decode()) == (0, 0)


@pytest.mark.parametrize("data", ["A", "iVBORw0KGgo", "é" * 40])
def test_what_is_no_base64_has_no_size(data: str) -> None:
    assert size_px(data) == (0, 0)


MEASURED = [
    # from the data set JOHNISKING/image-token-cost, in which the prompt takes up to 77 tokens at Claude and some 20 at
    # Gemini: the size, and what Claude 5.5, Claude 4.5, Gemini 3, GPT-6 and, with detail "high", GPT-6 reported
    ((256, 256), 177, 165, 1090, 77, 77),
    ((1024, 1024), 1446, 1434, 1090, 1229, 1229),
    ((1920, 1080), 2768, 1625, 1101, 2448, 2448),
    ((3840, 2160), 3069, 1657, 1101, 9792, 2931),
    (PHOTO, 4005, 1661, 1065, 14_364, 2942),
]


@pytest.mark.parametrize(("size", "claude_5", "claude_4", "gemini", "gpt_6", "gpt_6_high"), MEASURED)
def test_no_image_takes_more_than_was_reckoned(
    size: tuple[int, int], claude_5: int, claude_4: int, gemini: int, gpt_6: int, gpt_6_high: int
) -> None:
    def upper(model: str, detail: str | None = None) -> int:
        return rule_of(model).tokens(Image(*size, detail)).upper

    assert upper("gpt-6.1-sol") == gpt_6
    assert gpt_6_high <= upper("gpt-6.1-sol", "high") <= 1.05 * gpt_6_high
    assert claude_5 - 77 <= upper("anthropic/claude-opus-5.5") <= 1.6 * claude_5
    assert claude_4 - 65 <= upper("claude-sonnet-4-5-20250929") <= 1.05 * claude_4
    assert gemini <= upper("google/gemini-4-argon") <= 1.1 * gemini


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", (1024, 1024), None, 765),  # both from OpenAI's guide
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4.1", (200, 100), None, 255),
        ("gpt-4o-mini", PHOTO, None, 25_501),
        ("gpt-4.1-mini-2025-04-14", PHOTO, "low", 2489),
        ("gpt-5.4-mini", (1600, 1600), None, 4050),
        ("openai/gpt-5.4", PHOTO, None, 3000),
        ("openai/gpt-5.4", PHOTO, "original", 12_000),
        ("gpt-7-nova", PHOTO, None, 14_364),
        ("gpt-6-luna", PHOTO, "low", 308),
        ("claude-opus-4-20250514", PHOTO, None, 1600),
        ("claude-opus-4-7", PHOTO, None, 4784),
        ("gemini-2.5-flash-lite", (300, 300), None, 258),
        ("gemini-2.5-flash-lite", (960, 540), None, 6 * 258),  # from Gemini's page on tokens
    ],
)
def test_each_family_counts_by_its_own_rule(model: str, size: tuple[int, int], detail: str | None, tokens: int) -> None:
    assert rule_of(model).tokens(Image(*size, detail)) == (tokens, tokens)


def test_a_deployment_is_judged_by_the_name_that_says_something() -> None:
    assert rule_of("ours", "gpt-4o") == rule_of("gpt-4o")
    assert rule_of("qwen/qwen3.8-27b", "my-model") is UNKNOWN


def test_an_unknown_model_may_take_little_of_an_image_and_much() -> None:
    assert image_tokens(UNKNOWN, (Image(512, 512),)) == Tokens(256, 2048)
    assert image_tokens(UNKNOWN, (Image(*PHOTO),)) == Tokens(256, 144 * 108)


@pytest.mark.parametrize(
    "model", ["gpt-6-luna", "gpt-5.4", "gpt-4o-mini", "claude-opus-5-5", "gemini-4-argon", "llava"]
)
def test_an_image_of_unknown_size_may_take_the_most(model: str) -> None:
    rule = rule_of(model)
    expected, upper = image_tokens(rule, (Image(0, 0),))
    largest = max(rule.tokens(Image(5000, 5000)).upper, rule.tokens(Image(3000, 1000, "original")).upper)
    assert expected == 256
    assert upper >= largest


def asked(*images: bytes, detail: str | None = None, **fields: Any) -> JobProfile:
    urls = [f"data:image/png;base64,{b64encode(image).decode()}" for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": detail}} for url in urls]
    content = [{"type": "text", "text": "What?"}, *parts]
    given = {"messages": [{"role": "user", "content": content}], "max_output_tokens": 100, **fields}
    return JobProfile.of(InferenceRequest.model_validate(given))


@pytest.mark.parametrize(("width", "height"), [(5, 0), (0, 5), (1, 65_535), (2**31 - 1, 1)])
def test_every_rule_counts_an_image_of_any_shape(width: int, height: int) -> None:
    """A height of 0 once ended a whole run, and looked like a job that kills its workers."""
    images = asked(png(width, height)).images
    for rule in (UNKNOWN, *(rule for _, rule in RULES)):
        tokens = image_tokens(rule, images)
        assert 0 < tokens.expected <= tokens.upper


SEES = {"capabilities": frozenset({"vision"})}
GPT_6 = endpoint("openai", **SEES, image_rule=rule_of("gpt-6-luna"), price=Price(1.0, 0.0))
GEMINI = endpoint("gemini", **SEES, image_rule=rule_of("gemini-3.8-flash"), price=Price(2.0, 0.0))


def test_a_ceiling_on_cost_reckons_with_what_each_model_counts_for_an_image() -> None:
    wanted = asked(png(*PHOTO), png(*PHOTO))
    assert upper_cost_microusd(wanted, GPT_6) == 2 * 14_364 + 112
    capped = asked(png(*PHOTO), png(*PHOTO), constraints={"max_cost_usd": 0.01})
    assert reasons(decide(capped, GPT_6, GEMINI)) == {"openai": "cost"}


def test_the_cheapest_is_judged_by_what_it_counts_for_an_image() -> None:
    wanted = asked(png(*PHOTO), constraints={"strategy": "cost"})
    assert chosen(decide(wanted, GPT_6, GEMINI)) == ["gemini", "openai"], "though a token costs twice as much there"


def test_rate_limits_are_charged_with_what_the_model_counts_for_an_image() -> None:
    wanted = asked(png(*PHOTO))
    assert {one.endpoint.provider: one.input_tokens for one in decide(wanted, GPT_6, GEMINI).candidates} == {
        "openai": 14_364 + 112,
        "gemini": 1120 + 112,
    }
    room = Load(ready_at=1_000_010.0, fits=14_000)
    assert chosen(decide(wanted, view(GPT_6, load=room))) == []
    assert chosen(decide(wanted, view(GEMINI, load=room))) == ["gemini"]


def test_an_input_that_may_exceed_a_limit_is_charged_as_expected() -> None:
    """Such a job had to wait until nothing else was charged: photos went out one a minute."""
    wanted = asked(png(*PHOTO))
    for limit, charged in ((15_664, 144 * 108 + 112), (15_663, 256 + 10)):
        at = endpoint("lab", **SEES, limits=Limits(tokens_per_minute=limit))
        assert [one.input_tokens for one in decide(wanted, at).candidates] == [charged]


def test_a_job_that_may_fit_a_small_context_is_not_refused_for_its_images() -> None:
    small = endpoint("ollama", **SEES, context_tokens=8192)
    assert chosen(decide(asked(*[png(512, 512)] * 6, detail="low"), small)) == ["ollama"]
    assert reasons(decide(asked(*[png(512, 512)] * 40), small)) == {"ollama": "context"}


def test_a_text_has_no_images() -> None:
    assert images_of(InferenceRequest(prompt="Hi")) == ()
    assert asked().images == ()
