"""What the stores keep of an endpoint."""

from __future__ import annotations

from turnout.ledger import Keys
from turnout_workers.state.record import NAMES


def test_another_layout_has_another_key() -> None:
    """Workers of two releases may be at work on one Redis."""
    assert Keys().endpoints == f"{{turnout}}:endpoints:{len(NAMES)}"
