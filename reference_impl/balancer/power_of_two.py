"""Power of two choices: the less loaded of two members drawn at random (Mitzenmacher 2001).

Nearly as even as the least loaded, without its herd effect where several gateways see stale loads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from reference_impl.balancer.port import Member

__all__ = ["PairDraw", "PowerOfTwo", "counter_draw"]

# The two uniforms in [0, 1) of decision number n.
PairDraw = Callable[[int], tuple[float, float]]


def counter_draw(seed: int) -> PairDraw:
    """Counter-based uniforms: decision n has the same luck in every run and in both worlds, whatever came before."""
    key = seed.to_bytes(16, "little", signed=True)

    def draw(number: int) -> tuple[float, float]:
        digest = hashlib.blake2b(number.to_bytes(8, "little"), key=key, digest_size=16).digest()
        return (
            (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53,
            (int.from_bytes(digest[8:], "little") >> 11) * 2.0**-53,
        )

    return draw


class PowerOfTwo:
    """Draws two distinct members by `draw(decision number)`; the first drawn wins a tie."""

    def __init__(self, draw: PairDraw) -> None:
        self._draw = draw
        self._members: list[Member] = []
        self._index: dict[Member, int] = {}
        self._decisions = 0

    def add(self, member: Member) -> None:
        self._index[member] = len(self._members)
        self._members.append(member)

    def remove(self, member: Member) -> None:
        # The last one takes the place of the one that leaves.
        index, last = self._index.pop(member), self._members.pop()
        if last is not member:
            self._members[index] = last
            self._index[last] = index

    def changed(self, member: Member) -> None:
        """Loads are read when two members are compared."""

    def select(self) -> Member | None:
        members = self._members
        if not members:
            return None
        first_u, second_u = self._draw(self._decisions)
        self._decisions += 1
        if len(members) == 1:
            return members[0]
        first = int(first_u * len(members))
        second = int(second_u * (len(members) - 1))
        if second >= first:
            second += 1
        a, b = members[first], members[second]
        return b if b.load < a.load else a
