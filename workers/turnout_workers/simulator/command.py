"""`turnout simulate`: run the simulated fleet until stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import click
import uvloop

from turnout_workers.config import toml_lines
from turnout_workers.simulator.scenario import DEFAULT, load
from turnout_workers.simulator.server import Simulator


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8787,
    show_default=True,
    help="Port; 0 takes any free one and prints it.",
)
@click.option(
    "--scenario",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=DEFAULT,
    show_default=False,
    help="TOML file of the fleet and its faults. By default five providers, one of which fails for a while.",
)
@click.option(
    "--toml",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a turnout.toml for this fleet to this path. An existing file is never overwritten.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the base URLs as one line of JSON.")
def simulate(host: str, port: int, file: Path, toml: Path | None, as_json: bool) -> None:
    """Serve simulated providers over HTTP. They speak OpenAI's, Anthropic's and Gemini's formats; no model is run."""
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
        _write(toml, toml_lines.dumps(scenario.configuration(urls)) + "\n")
    if as_json:
        print(json.dumps({"url": simulator.url, "providers": urls}), flush=True)
        return
    print("Simulated providers: answers are made up, no model is run.")
    for name, url in urls.items():
        print(f"  {name:14} {scenario.providers[name].kind:10} {url}")
    print(f"  control        {simulator.url}/control/stats", flush=True)


def _write(toml: Path, text: str) -> None:
    """Write a new file. One that exists is never replaced, not even one that was written here: it may have been
    edited."""
    try:
        with toml.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if _providers(toml_lines.read_text(toml)) != _providers(text):
            raise click.ClickException(
                f"{toml} exists, and its providers are not this fleet at these addresses: "
                "remove it to have it written, or leave --toml out to keep it"
            ) from None
    except OSError as error:
        raise click.ClickException(f"can't write {toml}: {error.strerror}") from None


def _providers(text: str) -> Any:
    try:
        return tomllib.loads(text).get("providers")
    except tomllib.TOMLDecodeError:
        return None
