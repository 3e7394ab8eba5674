"""A streamed answer, as its reader sees it. Pure: what to yield for each entry of the job's Redis stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Entry = tuple[bytes, Mapping[bytes, bytes]]

BLOCK_MS = 1000
"""How long one read waits for news. After it the reader asks whether the job has ended."""


class Restarted(str):
    """An empty piece: what came before is void, for the answer begins anew, as after a failover in mid-stream."""

    __slots__ = ()


class Reader:
    """Follows one stream from its beginning."""

    def __init__(self) -> None:
        self.after = b"0"
        """The last entry seen."""
        self.ended = False
        self.given = False
        """Whether anything was given since the answer last began."""
        self._call: bytes | None = None

    def read(self, entries: Iterable[Entry]) -> list[str]:
        """What there is to yield. Pieces of any call but the one that began last are nobody's any more."""
        pieces: list[str] = []
        for entry_id, fields in entries:
            self.after = entry_id
            if b"end" in fields:
                self.ended = True
            elif b"text" not in fields:
                if self.given:
                    pieces.append(Restarted())
                self._call, self.given = fields[b"call"], False
            elif fields[b"call"] == self._call:
                pieces.append(fields[b"text"].decode())
                self.given = True
        return pieces


def entries(reply: Any) -> Sequence[Entry]:
    """Of the one stream that was read; the reply differs between versions of the protocol."""
    if not reply:
        return ()
    found: Sequence[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    if found and isinstance(found[0], list):
        found = found[0]
    return found
