"""How many tokens a request may take: an upper bound for any text, without counting its tokens."""

from __future__ import annotations

import pytest

from turnout.messages import FunctionDefinition, Tool
from turnout.request import InferenceRequest
from turnout_workers.routing.profile import MARK_TOKENS, estimate_input_tokens

# Texts and how many tokens OpenAI's encodings make of them, the more of o200k_base and cl100k_base.
COUNTED = [
    ("4,1,5,2,3,1,1,4,5,2", 19),
    ("[10, 42, 77, 13, 98]", 15),
    ("12.99,7.50,48.20", 11),
    ("[1.5, 2.25]", 10),
    ("2026-11-28 12:49:42", 12),
    ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", 27),
    ("1a2b3c4d", 8),
    ("SGVsbG8sIHdvcmxkIQ==q83vEjRWeJA", 21),
    ("ሰላም ለዓለም", 21),
    ("🌈🌋🌌", 9),
    ("a b c d", 4),
    ("MSHLTQRKLIN", 6),
    ("zebra", 2),
]


@pytest.mark.parametrize(("text", "tokens"), COUNTED)
def test_no_text_takes_more_tokens_than_its_upper_estimate(text: str, tokens: int) -> None:
    upper, expected = estimate_input_tokens(InferenceRequest(prompt=text))
    assert tokens <= upper - 8
    assert expected == -(-len(text.encode()) // 4) + 8


def test_english_is_estimated_at_no_more_than_three_times_what_it_takes() -> None:
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."  # 21 tokens
    assert estimate_input_tokens(InferenceRequest(prompt=text))[0] - 8 <= 3 * 21


def test_each_text_to_embed_takes_a_token_and_its_marks_at_least() -> None:
    upper, _ = estimate_input_tokens(InferenceRequest(input=("7",) * 1000))
    assert upper == 1000 * (1 + MARK_TOKENS)


def test_tools_bring_a_prompt_of_their_own() -> None:
    tool = Tool(function=FunctionDefinition(name="f"))
    plain, with_tools = (estimate_input_tokens(InferenceRequest(prompt="x", tools=tools)) for tools in ((), (tool,)))
    assert with_tools[0] - plain[0] >= 530, "as Claude's, by its price list"
    assert with_tools[1] - plain[1] < 100, "which is no part of what is expected"
