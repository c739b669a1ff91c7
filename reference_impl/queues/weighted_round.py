"""Whose turn it is among classes of tasks.

Smooth weighted round robin (nginx, 2012: each candidate earns its weight, the richest is served and pays the sum): in every
round of `sum(weights)` turns a class that always has tasks is served `weight` times, evenly spread. Strict priority would
starve the lower classes whenever the higher ones keep a worker busy.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["WeightedRound", "level_of"]


def level_of(priority: int, levels: int) -> int:
    """The class of a priority: those above the highest share it, as in RabbitMQ's `x-max-priority`."""
    return (
        +priority if priority < levels else levels - 1
    )  # +: a plain number, of an enumeration's too


class WeightedRound:
    """Turns of `levels` classes; class n has the weight n + 1, so the most urgent gets most."""

    __slots__ = ("_credit", "length", "levels")

    def __init__(self, levels: int) -> None:
        if levels < 1:
            raise ValueError(f"levels is {levels}: expected at least one class of tasks")
        self.levels = levels
        self.length = levels * (levels + 1) // 2
        self._credit = [0] * levels

    def next_of(self, waiting: Sequence[object]) -> int | None:
        """What `choose` would say, which takes the turn."""
        credit = self._credit.copy()
        level = self.choose(waiting)
        self._credit = credit
        return level

    def choose(self, waiting: Sequence[object]) -> int | None:
        """The class to serve, of those whose entry in `waiting` is truthy; None if there is none.

        A class that has nothing waiting keeps neither credit nor debt.
        """
        credit = self._credit
        best, most, total = -1, 0, 0
        for level, tasks in enumerate(waiting):
            if tasks:
                weight = level + 1
                total += weight
                credit[level] += weight
                if credit[level] >= most or best < 0:
                    best, most = level, credit[level]
            elif credit[level]:
                credit[level] = 0
        if best < 0:
            return None
        credit[best] -= total
        return best
