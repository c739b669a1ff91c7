"""Power of d choices: the least loaded of d members drawn at random; two are enough for most of the gain (Mitzenmacher 2001).

Nearly as even as the least loaded, without its herd effect where several gateways see stale loads.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import insort
from collections.abc import Callable
from typing import Final

from reference_impl.balancer.port import Member

__all__ = ["MAX_CHOICES", "Draw", "PowerOfChoices", "counter_draw"]

# As many 64-bit words as one blake2b yields.
MAX_CHOICES: Final = 8

# The uniforms in [0, 1) of decision number n, one for each choice.
Draw = Callable[[int], tuple[float, ...]]


def counter_draw(seed: int, choices: int = 2) -> Draw:
    """Counter-based uniforms: decision n has the same luck in every run and in both worlds, whatever came before."""
    if not 1 <= choices <= MAX_CHOICES:
        raise ValueError(f"choices: {choices} is out of bounds; allowed: 1 to {MAX_CHOICES}")
    key = seed.to_bytes(16, "little", signed=True)
    size = 8 * choices
    words = struct.Struct(f"<{choices}Q").unpack

    def draw(number: int) -> tuple[float, ...]:
        counter = number.to_bytes(8, "little")
        digest = hashlib.blake2b(counter, key=key, digest_size=size).digest()
        return tuple([(word >> 11) * 2.0**-53 for word in words(digest)])

    return draw


class PowerOfChoices:
    """Draws as many distinct members as `draw(decision number)` has uniforms; of equals the first drawn wins."""

    def __init__(self, draw: Draw) -> None:
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
        """Loads are read when members are compared."""

    def select(self) -> Member | None:
        members = self._members
        if not members:
            return None
        luck = self._draw(self._decisions)
        self._decisions += 1
        chosen: Member | None = None
        drawn: list[int] = []  # sorted
        for u in luck[: len(members)]:
            # The how-manieth of those not drawn yet.
            index = int(u * (len(members) - len(drawn)))
            for earlier in drawn:
                if index >= earlier:
                    index += 1
            insort(drawn, index)
            candidate = members[index]
            if chosen is None or candidate.load < chosen.load:
                chosen = candidate
        return chosen
