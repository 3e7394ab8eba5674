"""Foreign text on one line of a terminal, which would obey its control characters, or of a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a space for each character that isn't printable: those that end lines, control terminals, or change
    the direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
