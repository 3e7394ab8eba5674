"""Texts of others on a line: in a terminal, which would obey what they say in control characters, and in a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a space for each character that isn't shown: those that end lines, command terminals, or turn the
    direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
