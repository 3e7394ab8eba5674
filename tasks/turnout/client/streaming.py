"""A streamed answer, as its reader sees it. Pure: what to yield for each entry of the job's Redis stream."""

from __future__ import annotations

from collections.abc import Iterable

from turnout.ledger import Piece


class Restarted(str):
    """An empty piece: what came before is void, for the answer begins anew, as after a failover in mid-stream, or where
    pieces were lost on their way."""

    __slots__ = ()


class Reader:
    """Follows one stream from its beginning."""

    def __init__(self) -> None:
        self.after = "0"
        """The last entry seen."""
        self.ended = False
        self._given: list[str] = []
        """Since the answer last began."""
        self._call = ""

    def read(self, pieces: Iterable[Piece]) -> list[str]:
        """What there is to yield. Only the call that began last counts; pieces of earlier ones are dropped."""
        texts: list[str] = []
        for piece in pieces:
            self.after = piece.entry
            if piece.ends:
                self.ended = True
            elif piece.text is None:
                if self._given:
                    texts.append(Restarted())
                self._call, self._given = piece.call, []
            elif piece.call == self._call:
                texts.append(piece.text)
                self._given.append(piece.text)
        return texts

    def rest(self, answer: str) -> list[str]:
        """What there is to yield at the end, for the reader to have the answer: nothing, unless pieces were lost, as
        while Redis was away, or the answer is that of another call."""
        given = "".join(self._given)
        if not answer.startswith(given):
            return [Restarted(), answer]
        return [answer[len(given) :]] if given != answer else []
