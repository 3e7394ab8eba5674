"""The `turnout` command. Commands that need the worker's parts are found by entry point and loaded on use."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points, version

import click

GROUP = "turnout.commands"


class Commands(click.Group):
    """Commands of this package, and those that the installed parts of Turnout add to it."""

    def _found(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._found()})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if (command := super().get_command(ctx, name)) is not None:
            return command
        if (entry := self._found().get(name)) is None:
            return None
        try:
            loaded: click.Command = entry.load()
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("turnout"):
                raise
            raise click.ClickException(
                f"`turnout {name}` needs the worker's parts (no module {error.name}): pip install 'turnout[worker]'"
            ) from error
        return loaded


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("turnout"), prog_name="turnout")
def main() -> None:
    """Run AI inference as background jobs: routed, failed over, done once, every cent accounted for."""
