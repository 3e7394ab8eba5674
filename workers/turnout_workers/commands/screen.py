"""What commands print: tables and paragraphs for people, and with `--json` an object a line for programs.

Texts are shown as they are: a provider's message isn't markup, and text in a job can't control the terminal.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import click
from rich import box
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from turnout.printable import printable
from turnout.request import MICROUSD_PER_USD
from turnout.result import dollars


class Screen(Console):
    """A console that prints texts as they are, except for control characters that aren't its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
        for text, style, control in super().render(*args, **options):
            yield Segment(text if control else "\n".join(map(printable, text.split("\n"))), style, control)


def standard_output() -> Screen:
    """Standard output. In a file or a pipe, lines are as long as needed, unless COLUMNS limits them."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Screen(width=sys.maxsize if wide else None)


def standard_error() -> Screen:
    """Standard error, for messages about a command's work, which goes on even if they can't be written."""
    return Screen(file=cast(IO[str], _Dispensable(sys.stderr)))


class _Dispensable:
    """A file that ignores write errors."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def naming(id: str) -> Iterator[None]:
    """If standard output fails in the block, print the submitted id on standard error, because the work goes on."""
    try:
        yield
    except OSError:
        click.echo(f"Submitted: {id}", err=True)
        raise


def table(*columns: str, numbers: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """An empty table. `numbers`: right-aligned columns; these and `whole` ones are never wrapped. If a live display has
    no room for them, they end with an ellipsis."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        right = name in numbers
        kept = right or name in whole
        justify: JustifyMethod = "right" if right else "left"
        grid.add_column(name, justify=justify, no_wrap=kept, overflow="ellipsis" if kept else "fold")
    return grid


def add_row(grid: Table, *cells: str, style: str = "") -> None:
    grid.add_row(*map(Text, cells), style=style)


def show(console: Console, *parts: Table | Text, columns: int = 0) -> None:
    """Print texts and whole tables, indented. The terminal wraps tables that are too wide: if cut, numbers and names
    would be wrong."""
    terminal, wide = console.width, console.options.update(width=sys.maxsize)
    for part in parts:
        if isinstance(part, Table):
            console.width = max(terminal, columns + console.measure(part, options=wide).maximum)
        console.print(Padding.indent(part, columns))
        console.width = terminal


def indented(text: str, columns: int, style: str = "") -> Padding:
    """A paragraph with all its lines indented."""
    return Padding.indent(Text(text, style), columns)


def safe_for_terminal(text: str) -> str:
    """A foreign text for standard output: unchanged, except that control characters are removed on a terminal."""
    if not sys.stdout.isatty():
        return text
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def counted(count: int, what: str) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def seconds(value: float | None, unknown: str = "") -> str:
    return unknown if value is None else f"{value:.2f} s"


def usd(amount: float) -> str:
    """Money for people."""
    return dollars(round(amount * MICROUSD_PER_USD))


def steady_usd(microusd: int) -> str:
    """Money with as many decimals as keep it from jumping."""
    whole = microusd / MICROUSD_PER_USD
    return f"${whole:,.2f}" if whole >= 10 else f"${whole:.4f}"


def span(seconds: float) -> str:
    """A length of time for people: `14 s`, `3 min 20 s`, `2 h 5 min`, `1 d 4 h`."""
    whole = math.ceil(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def print_json(fields: Mapping[str, Any]) -> None:
    click.echo(to_json_line(fields))


def to_json_line(fields: Mapping[str, Any]) -> str:
    """A line of JSON, with money in dollars."""
    return json.dumps(_in_usd(fields))


def _in_usd(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(_field(name, one) for name, one in value.items())
    return [*map(_in_usd, value)] if isinstance(value, list | tuple) else value


def _field(name: str, value: Any) -> tuple[str, Any]:
    amount = name.removesuffix("_microusd")
    if amount == name or not isinstance(value, float | int | None):  # a text is a user's label
        return name, _in_usd(value)
    # JSON has no infinity, which stands for an unknown price.
    return f"{amount}_usd", None if value is None or value == math.inf else value / MICROUSD_PER_USD
