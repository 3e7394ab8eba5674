"""Responses as bytes."""

from __future__ import annotations


def said(body: bytes, status: str = "200 OK", headers: str = "content-type: application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
