"""A streamed answer, as its reader sees it. Pure: what to yield for each entry of the job's Redis stream."""

from __future__ import annotations

from collections.abc import Iterable

from turnout.ledger import Piece


class Restarted(str):
    """An empty piece: what came before is void, because the answer starts again, as after a failover in mid-stream, or
    because pieces were lost on their way."""

    __slots__ = ()


class Reader:
    """Follows one stream from its beginning."""

    def __init__(self) -> None:
        self.after = "0"
        """The last entry seen."""
        self.ended = False
        self._yielded: list[str] = []
        """Since the answer last began."""
        self._call = ""

    def read(self, pieces: Iterable[Piece]) -> list[str]:
        """The texts to yield. Only the call that began last counts; pieces of earlier ones are dropped."""
        texts: list[str] = []
        for piece in pieces:
            self.after = piece.entry
            if piece.ends:
                self.ended = True
            elif piece.text is None:
                if self._yielded:
                    texts.append(Restarted())
                self._call, self._yielded = piece.call, []
            elif piece.call == self._call:
                texts.append(piece.text)
                self._yielded.append(piece.text)
        return texts

    def rest(self, answer: str) -> list[str]:
        """What is left to yield of the complete answer: nothing, unless pieces were lost, for example while Redis was
        away, or the answer is another call's."""
        yielded = "".join(self._yielded)
        if not answer.startswith(yielded):
            return [Restarted(), answer]
        return [answer[len(yielded) :]] if yielded != answer else []
