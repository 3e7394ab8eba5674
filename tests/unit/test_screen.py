"""What operators' commands print."""

from __future__ import annotations

from collections import Counter
from io import StringIO

from rich.console import Console

from turnout.batch.tally import ProviderTally, Tally
from turnout_workers.commands import screen
from turnout_workers.commands.explain import _choice
from turnout_workers.commands.run_display import Bar, closing_line, summary, table


def printed(made: object, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width).print(made)
    return out.getvalue()


def test_what_a_provider_says_is_shown_as_it_is() -> None:
    made = screen.table("endpoint", "why")
    screen.add_row(made, "groq/llama", "unexpected [/INST] in [bold]")
    assert "unexpected [/INST] in [bold]" in printed(made, 80)


def test_a_narrow_screen_breaks_words_but_no_number_and_nothing_whole() -> None:
    made = screen.table("job", "why", "calls", numbers=["calls"], whole=["job"])
    screen.add_row(made, "0123456789abcdef", "some longer words here", "1,234,567")
    told = printed(made, 44)
    assert "0123456789abcdef" in told
    assert "1,234,567" in told
    assert "longer words here" not in told


def test_a_batchs_end_fits_a_screen_of_80_columns() -> None:
    one = ProviderTally(124_000, 10, 6, 9, 14_014_000, 4_905_000, 1_900_000, simulated=True)
    one.latencies[12.8] += 1
    told = printed(table(Tally(providers={"anthropic-eu": one})), 80)
    assert "…" not in told
    assert all(part in told for part in ("124,000", "18,919,000", "$1.90"))


def test_a_batchs_end_says_that_no_model_was_run_only_where_none_was() -> None:
    made_up, real, failed = ProviderTally(3, simulated=True), ProviderTally(2), ProviderTally(failures=1)
    assert table(Tally(providers={"a": made_up, "b": failed})).title == "Simulated providers: no model was run"
    assert table(Tally(providers={"a": made_up, "b": real})).title == "Some answers are simulated"
    assert table(Tally(providers={"b": real})).title is None


def test_what_must_be_whole_is_whole_though_the_screen_is_narrower() -> None:
    out = StringIO()
    made = screen.table("job", "calls", numbers=["calls"], whole=["job"])
    screen.add_row(made, "0123456789abcdef", "1,234,567")
    screen.show(Console(file=out, width=20), made, columns=4)
    assert "    0123456789abcdef  1,234,567" in out.getvalue()


def test_one_is_one() -> None:
    assert closing_line(Tally(done=Counter(succeeded=1), failovers=2), 1.0, 50_000) == (
        "1 line in 1 s: 1 succeeded · 2 failovers · $0.0000 of $0.05 spent"
    )


def test_a_batchs_end_tells_of_answers_with_warnings() -> None:
    assert summary(tally := Tally(done=Counter(succeeded=9), warned=2))["warned"] == 2
    assert closing_line(tally, 1.0, None).endswith(" · 2 answers with warnings")


def test_a_providers_state_is_cut_on_a_narrow_screen_and_no_name_or_number() -> None:
    out = StringIO()
    bar = Bar(
        Console(file=out, width=80, force_terminal=True, color_system=None), "prompts.jsonl", 200, None, ["sim-thrifty"]
    )
    with bar:
        one = ProviderTally(jobs=80, cost_microusd=1500)
        bar.update(Tally(providers={"sim-thrifty": one}), {"sim-thrifty": f"out for another 8 s: {'failed ' * 20}"})
    assert "sim-thrifty  80 jobs  $0.0015  out for another 8 s: failed" in out.getvalue()


def test_who_had_no_room_is_told_with_what_was_full() -> None:
    asked = {"waits_for": None, "action": "go", "no_room": {"groq/llama": "concurrency", "openai/gpt": "ceiling total"}}
    assert _choice(asked, [], None) == "no room: groq/llama (concurrency), openai/gpt (ceiling total)"


def test_a_bar_tells_that_there_is_no_worker() -> None:
    out = StringIO()
    with Bar(Console(file=out, width=80, force_terminal=True, color_system=None), "x", 9, None, ["p"]) as bar:
        bar.update(Tally(), {"workers": "none is running"})
    assert "workers none is running" in " ".join(out.getvalue().split())


def test_a_bar_makes_no_forecast_of_an_input_whose_end_nobody_knows() -> None:
    out = StringIO()
    with Bar(Console(file=out, width=80, force_terminal=True, color_system=None), "-", None, None, []) as bar:
        bar.update(Tally(lines=3000, done=Counter(succeeded=5)), {})
    assert "5 of 3,000 so far" in out.getvalue()
    assert "ETA" not in out.getvalue()
