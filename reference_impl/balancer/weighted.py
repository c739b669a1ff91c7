"""Smooth weighted round robin, as nginx does it: shares in proportion to the weights, turns spread evenly.

nginx's rule: each selection adds every member's weight to its credit, takes the first member with the most credit, and
subtracts the sum of weights from it. Weights 5, 1, 1 give a a b a c a a. Its scan of all members at each selection is
avoided here: after t selections a member's credit is `base + weight * t`, where only the winner's base changes, so among
members of equal weight the order stands still. One heap for each distinct weight, and the winner is among their tops.
"""

from __future__ import annotations

from heapq import heapify, heappush, heapreplace

from reference_impl.balancer.port import Member

__all__ = ["SmoothWeighted"]

# (-base, serial, member): most credit first, then who joined first.
_Entry = tuple[float, int, Member]


class SmoothWeighted:
    """O(distinct weights + log n) a selection, the same sequence as nginx's scan."""

    def __init__(self) -> None:
        self._classes: dict[float, list[_Entry]] = {}
        # Weight and base with which each member is in its heap; its `weight` may have changed since.
        self._entered: dict[Member, tuple[float, float]] = {}
        self._selections = 0
        self._total_weight = 0.0

    def _credit(self, member: Member) -> float:
        weight, base = self._entered[member]
        return base + weight * self._selections

    def _enter(self, member: Member, credit: float) -> None:
        weight = member.weight
        base = credit - weight * self._selections
        self._entered[member] = (weight, base)
        self._total_weight += weight
        heappush(self._classes.setdefault(weight, []), (-base, member.serial, member))

    def _leave(self, member: Member) -> None:
        weight, _ = self._entered.pop(member)
        self._total_weight -= weight
        heap = [entry for entry in self._classes[weight] if entry[2] is not member]
        if heap:
            heapify(heap)
            self._classes[weight] = heap
        else:
            del self._classes[weight]

    def add(self, member: Member) -> None:
        # At the mean of the others: a newcomer neither gets a burst nor has to wait for them.
        others = [self._credit(other) for other in self._entered]
        self._enter(member, sum(others) / len(others) if others else 0.0)

    def remove(self, member: Member) -> None:
        self._leave(member)

    def changed(self, member: Member) -> None:
        """Only a new weight matters: the member keeps its credit."""
        if member.weight != self._entered[member][0]:
            credit = self._credit(member)
            self._leave(member)
            self._enter(member, credit)

    def select(self) -> Member | None:
        if not self._entered:
            return None
        self._selections += 1
        best_heap: list[_Entry] = []
        best = (-float("inf"), 0)
        for weight, heap in self._classes.items():
            negative_base, serial, _ = heap[0]
            credit = (weight * self._selections - negative_base, -serial)
            if credit > best:
                best, best_heap = credit, heap
        winner = best_heap[0][2]
        weight, base = self._entered[winner]
        base -= self._total_weight
        self._entered[winner] = (weight, base)
        heapreplace(best_heap, (-base, winner.serial, winner))
        return winner
