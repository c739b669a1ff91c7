"""What happens to a run, and when: drawn from a seed, measured in the progress of its tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from tests.faults.cuttable_link import BOTH_WAYS, Way

__all__ = ["Fault", "Kind", "draw_plan"]

# killed: SIGKILL, then another in its place (a broker: with its data). stopped: SIGSTOP until others have noticed, then SIGCONT:
# a worker that comes back as a zombie. reset: its connections to the broker break, and both ends are told. cut: nothing passes
# between it and the broker, and nobody is told, until others have noticed.
Kind = Literal[
    "worker killed",
    "worker stopped",
    "worker reset",
    "worker cut",
    "broker killed",
    "broker stopped",
    "producer reset",
    "producer cut",
]

_WAYS: tuple[tuple[Way, ...], ...] = (BOTH_WAYS, BOTH_WAYS, ("up",), ("down",))


class Fault(msgspec.Struct, frozen=True):
    """One thing that goes wrong.

    Attributes:
        at: the share of the tasks that have taken effect by then.
        victim: which worker.
        lasts: of what hangs, in units of the time after which a silent peer is given up.
        ways, forget: of a cut; see `Link`.
    """

    kind: Kind
    at: float
    victim: int
    lasts: float
    ways: tuple[Way, ...]
    forget: bool


def draw_plan(kinds: Sequence[Kind], seed: int, workers: int) -> list[Fault]:
    """A fault of each kind, each at a random point of its own stretch of the run, in a random order."""
    luck = random.Random(seed)
    shuffled = luck.sample(kinds, len(kinds))
    return [
        Fault(
            kind=kind,
            at=0.9 * (number + luck.random()) / len(kinds),
            victim=luck.randrange(workers),
            lasts=luck.uniform(1.2, 2.0),
            ways=luck.choice(_WAYS),
            forget=luck.random() < 0.5,
        )
        for number, kind in enumerate(shuffled)
    ]
