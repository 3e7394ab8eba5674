"""The routing core stays pure: what its modules may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import turnout_workers.routing as routing

FOLDER = Path(routing.__file__).parent
ALLOWED = ("turnout.errors", "turnout.request", "turnout_workers.routing")


def imported(module: Path) -> set[str]:
    tree = ast.parse(module.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("module", sorted(FOLDER.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_routing_imports_only_itself_the_contract_and_the_standard_library(module: Path) -> None:
    foreign = {
        name
        for name in imported(module)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith(ALLOWED)
    }
    assert not foreign


@pytest.mark.parametrize("module", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_routing_does_no_io_and_reads_no_clock(module: Path) -> None:
    assert not imported(module) & {"time", "asyncio", "socket", "threading", "os", "datetime", "logging"}


def test_the_pure_core_is_imported_without_the_router() -> None:
    code = "import sys, turnout_workers.routing as r; print('turnout_workers.state' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
