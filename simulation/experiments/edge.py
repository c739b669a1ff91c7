"""What only the edge of the program knows, handed to the commands as click's context object."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from simulation.experiments.virtual_run import Provenance

__all__ = ["Edge"]


class Edge(msgspec.Struct, frozen=True):
    """`wall_clock`: for limits in real seconds (without it there are none), for example time.monotonic.

    `provenance`: called once an experiment; results of other code are not mixed with its own.
    """

    wall_clock: Callable[[], float] | None = None
    provenance: Callable[[], Provenance] = Provenance
