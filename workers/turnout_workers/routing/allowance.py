"""A bound on retries and second calls, as a share of all calls: when much fails, they stop adding to the load."""

from __future__ import annotations


class Allowance:
    """Each call deposits `ratio`, each extra call withdraws 1."""

    def __init__(self, ratio: float, reserve: float) -> None:
        """ratio: extra calls per call. reserve: extra calls that are free at first, and the most that is saved up."""
        self._ratio = ratio
        self._max_balance = max(1.0, reserve)
        self._balance = reserve

    def deposit(self) -> None:
        self._balance = min(self._max_balance, self._balance + self._ratio)

    @property
    def available(self) -> bool:
        return self._balance >= 1

    def withdraw(self) -> bool:
        """Take one extra call. False: none is available."""
        if not self.available:
            return False
        self._balance -= 1
        return True
