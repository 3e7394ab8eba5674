"""`turnout simulate`: run the simulated fleet until stopped."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import click
import uvloop

from turnout_workers.config import toml_lines
from turnout_workers.simulator.scenario import DEFAULT, load
from turnout_workers.simulator.server import Simulator


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8787, show_default=True, help="Port; 0: any free one, printed."
)
@click.option(
    "--scenario",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=DEFAULT,
    help="TOML file of the fleet and its faults; left out: five providers, of which one fails for a while.",
)
@click.option(
    "--toml", type=click.Path(path_type=Path, dir_okay=False), help="Write a turnout.toml for this fleet to this file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line with the base URLs.")
def simulate(host: str, port: int, file: Path, toml: Path | None, as_json: bool) -> None:
    """Serve simulated providers in OpenAI's, Anthropic's and Gemini's formats. No model is run."""
    uvloop.run(_serve(Simulator(load(file), host, port), toml, as_json))


async def _serve(simulator: Simulator, toml: Path | None, as_json: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with simulator:
            _announce(simulator, toml, as_json)
            await stop.wait()
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}; see --host and --port (0: any free one)") from None


def _announce(simulator: Simulator, toml: Path | None, as_json: bool) -> None:
    scenario = simulator.scenario
    urls = {name: simulator.base_url(name) for name in scenario.providers}
    if toml is not None:
        try:
            toml.write_text(toml_lines.dumps(scenario.configuration(urls)) + "\n", "utf-8")
        except OSError as error:
            raise click.ClickException(f"can't write {toml}: {error.strerror}") from None
    if as_json:
        print(json.dumps({"url": simulator.url, "providers": urls}), flush=True)
        return
    print("Simulated providers: answers are made up, no model is run.")
    for name, url in urls.items():
        print(f"  {name:14} {scenario.providers[name].kind:10} {url}")
    print(f"  control        {simulator.url}/control/stats", flush=True)
