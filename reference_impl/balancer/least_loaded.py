"""Least loaded: the member with the fewest calls in flight for its share; equals take turns."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from reference_impl.balancer.port import Member

__all__ = ["LeastLoaded"]

_Entry = tuple[float, int, Member]


class LeastLoaded:
    """A heap of (load, token) with lazy deletion: O(log n) a change, no scan of the fleet.

    A change pushes a fresh entry and makes the old one stale. Tokens grow, so among equal loads the one whose load
    changed, or who was selected, longest ago comes first: ties rotate, and the order is the same in every run.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        # The token of each member's one valid entry. Kept here and not on the member, who may move to another pool.
        self._tokens: dict[Member, int] = {}
        self._token = 0

    def _push(self, member: Member) -> None:
        self._token += 1
        self._tokens[member] = self._token
        heap = self._heap
        heappush(heap, (member.load, self._token, member))
        # Stale entries sink where `select` does not pass: rebuild before they outnumber the rest.
        if len(heap) > 4 * len(self._tokens) + 16:
            heap[:] = [entry for entry in heap if entry[1] == self._tokens.get(entry[2])]
            heapify(heap)

    def add(self, member: Member) -> None:
        self._push(member)

    def remove(self, member: Member) -> None:
        del self._tokens[member]

    def changed(self, member: Member) -> None:
        self._push(member)

    def select(self) -> Member | None:
        heap = self._heap
        while heap:
            _, token, member = heappop(heap)
            if token == self._tokens.get(member):
                self._push(member)
                return member
        return None
