"""What a type checker sees of packages whose names are loaded when they are first used."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize(("package", "name"), [("turnout", "Client"), ("turnout_workers.routing", "IntelligentRouter")])
def test_a_misspelt_import_is_an_error_for_a_type_checker(tmp_path: Path, package: str, name: str) -> None:
    (app := tmp_path / "app.py").write_text(f"from {package} import {name}\nfrom {package} import {name}s\n")
    told, _, _ = api.run(["--config-file", str(PROJECT), str(app)])
    error, *_, end = told.splitlines()
    assert f'app.py:2: error: Module "{package}" has no attribute "{name}s"' in error
    assert "Found 1 error" in end
