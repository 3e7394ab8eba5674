"""A streamed answer, as its reader sees it. Pure: what to yield for each entry of the job's Redis stream."""

from __future__ import annotations

from collections.abc import Iterable

from turnout.ledger import Piece


class Restarted(str):
    """An empty piece: what came before is void, for the answer begins anew, as after a failover in mid-stream."""

    __slots__ = ()


class Reader:
    """Follows one stream from its beginning."""

    def __init__(self) -> None:
        self.after = "0"
        """The last entry seen."""
        self.ended = False
        self.given = False
        """Whether anything was given since the answer last began."""
        self._call = ""

    def read(self, pieces: Iterable[Piece]) -> list[str]:
        """What there is to yield. Only the call that began last counts; pieces of earlier ones are dropped."""
        texts: list[str] = []
        for piece in pieces:
            self.after = piece.entry
            if piece.ends:
                self.ended = True
            elif piece.text is None:
                if self.given:
                    texts.append(Restarted())
                self._call, self.given = piece.call, False
            elif piece.call == self._call:
                texts.append(piece.text)
                self.given = True
        return texts
