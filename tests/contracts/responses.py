"""Responses as bytes, and who hears them piece by piece."""

from __future__ import annotations


def said(body: bytes, status: str = "200 OK", headers: str = "content-type: application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Heard(list[str]):
    """What a streamed call has told so far; give it as `on_token`."""

    async def __call__(self, piece: str) -> None:
        assert isinstance(piece, str)
        self.append(piece)
