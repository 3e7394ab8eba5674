"""The `turnout` command. Its subcommands belong to the worker's package: found by entry point, loaded on use."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points, version
from io import TextIOWrapper
from typing import Any

import click

GROUP = "turnout.commands"
UNUSABLE, STOPPED = 2, 3
"""Exit codes. 1: the command ran, but not everything is well, for example lines without an answer. See
docs/commands.md."""


class Unusable(click.ClickException):
    exit_code = UNUSABLE


class Commands(click.Group):
    """The commands of all installed parts of Turnout.

    Errors that Turnout, Redis and the system raise on purpose are shown as one line, without a traceback.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        _reopen_closed_streams()
        try:
            return super().main(*args, **options)
        except OSError as error:
            Unusable(str(error)).show()
            sys.exit(UNUSABLE)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            sys.exit(STOPPED)
        except click.ClickException as error:
            if error.exit_code == UNUSABLE:
                raise
            raise Unusable(error.format_message()) from error
        except Exception as error:
            from redis.exceptions import RedisError

            from turnout.errors import TurnoutError
            from turnout.redis_trouble import explain

            if isinstance(error, TurnoutError):
                raise Unusable(str(error)) from error
            if isinstance(error, RedisError):
                raise Unusable(explain(error)) from error
            if isinstance(error, UnicodeEncodeError):
                wrong = ascii(error.object[error.start : error.end])
                raise Unusable(f"not found: {wrong} is not valid UTF-8, so no id or name contains it") from error
            raise

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._entries())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if (entry := self._entries().get(name)) is None:
            return None
        try:
            loaded: click.Command = entry.load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("turnout"):
                raise
            return _missing(name, error.name)
        return loaded


def _reopen_closed_streams() -> None:
    """A stream that the shell closed (`>&-`) is opened on /dev/null. Otherwise the next file or socket would get
    descriptor 1 or 2 and receive our output. In this order, because `open` takes the lowest free number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (until the end)


def _missing(name: str, module: str | None) -> click.Command:
    """A placeholder for a command whose parts are not installed, so that the list of commands is complete."""

    @click.command(name, add_help_option=False, short_help="(not installed: pip install 'turnout[worker]')")
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def missing(rest: tuple[str, ...]) -> None:
        raise click.ClickException(
            f"`turnout {name}` needs the worker's parts (no module {module}): pip install 'turnout[worker]'"
        )

    missing.context_settings = {"ignore_unknown_options": True}
    return missing


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(version("turnout"), prog_name="turnout")
def main() -> None:
    """Run AI inference as background jobs: routed, failed over, done once, every cent accounted for."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for lone surrogates, and what the locale can't encode
