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
        self._members = 0
        self._token = 0

    def _push(self, member: Member) -> None:
        self._token += 1
        member.token = self._token
        heap = self._heap
        heappush(heap, (member.load, self._token, member))
        # Stale entries sink where `select` does not pass: rebuild before they outnumber the rest.
        if len(heap) > 4 * self._members + 16:
            heap[:] = [entry for entry in heap if entry[1] == entry[2].token]
            heapify(heap)

    def add(self, member: Member) -> None:
        self._members += 1
        self._push(member)

    def remove(self, member: Member) -> None:
        self._members -= 1
        member.token = -1

    def changed(self, member: Member) -> None:
        self._push(member)

    def select(self) -> Member | None:
        heap = self._heap
        while heap:
            _, token, member = heappop(heap)
            if token == member.token:
                self._push(member)
                return member
        return None
