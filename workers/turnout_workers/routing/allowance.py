"""A bound on retries and second calls, as a share of all: when much fails at once, they stop adding to the load."""

from __future__ import annotations


class Allowance:
    """Each call deposits `ratio`, each extra one withdraws 1."""

    def __init__(self, ratio: float, reserve: float) -> None:
        """ratio: extra calls per call. reserve: extra calls that are free at first, and the most saved up."""
        self._ratio = ratio
        self._most = max(1.0, reserve)
        self._balance = reserve

    def deposit(self) -> None:
        self._balance = min(self._most, self._balance + self._ratio)

    @property
    def left(self) -> bool:
        return self._balance >= 1

    def withdraw(self) -> bool:
        """Take one extra call, if there is one."""
        if not self.left:
            return False
        self._balance -= 1
        return True
