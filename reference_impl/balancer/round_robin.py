"""Round robin: each member in turn."""

from __future__ import annotations

from reference_impl.balancer.port import Member

__all__ = ["RoundRobin"]


class RoundRobin:
    """Rotates in the order of joining. Who joins or leaves does not make anyone skip or repeat a turn."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._next = 0

    def add(self, member: Member) -> None:
        # The newcomer's turn comes last in the present round.
        self._members.insert(self._next, member)
        self._next = (self._next + 1) % len(self._members)

    def remove(self, member: Member) -> None:
        index = self._members.index(member)
        del self._members[index]
        if index < self._next:
            self._next -= 1
        if self._next == len(self._members):
            self._next = 0

    def changed(self, member: Member) -> None:
        """Load and weight do not matter here."""

    def select(self) -> Member | None:
        if not self._members:
            return None
        member = self._members[self._next]
        self._next = (self._next + 1) % len(self._members)
        return member
