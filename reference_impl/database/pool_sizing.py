"""Is a pool too small or too large for its demand? The queue of M/M/c answers.

Requests for a connection arrive at `rate_per_s` and keep one for `hold_s` on average; c connections are c servers. Erlang's C
formula gives the probability of a wait (Erlang 1917; Kleinrock, Queueing Systems I, 1975, section 3.5).
"""

from __future__ import annotations

import itertools
import math
from typing import Final, Literal

import msgspec

__all__ = ["PoolVerdict", "erlang_c", "judge_pool", "mean_wait_s"]

WAIT_SHARE: Final = 0.1  # a wait of a tenth of the holding time is what a pool may cost
MAX_CONNECTIONS: Final = (
    262_143  # the most that PostgreSQL can be set to (its manual, max_connections)
)
MARGIN: Final = 4  # connections beyond so many times the need cost the server memory and locks, and gain nothing


class PoolVerdict(msgspec.Struct, frozen=True):
    """`needed`: the fewest connections with a mean wait within `WAIT_SHARE` of the holding time.

    `wait_s`: the mean wait at the present `size` (inf: it cannot carry the load). `in_use`: connections busy on average.
    """

    verdict: Literal["too small", "too large", "right"]
    size: int
    needed: int
    in_use: float
    wait_s: float


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits, at `load` = rate x service time; 1 where load >= servers."""
    if load >= servers:
        return 1.0
    blocking = 1.0  # Erlang's B by its recursion, which neither overflows nor cancels
    for k in range(1, servers + 1):
        blocking = load * blocking / (k + load * blocking)
    utilisation = load / servers
    return blocking / (1.0 - utilisation * (1.0 - blocking))


def _fewest(load: float) -> int:
    """The fewest servers whose mean wait is within `WAIT_SHARE` of the time of service."""
    blocking = 1.0
    for servers in itertools.count(1):
        blocking = load * blocking / (servers + load * blocking)
        if servers > load:
            waits = blocking / (1.0 - load / servers * (1.0 - blocking))
            if waits / (servers - load) <= WAIT_SHARE:
                return servers
    raise AssertionError("counting ends with a return")


def mean_wait_s(servers: int, rate_per_s: float, hold_s: float) -> float:
    """Mean wait of all arrivals in seconds; inf where they come faster than they can be served."""
    load = rate_per_s * hold_s
    if load >= servers:
        return float("inf")
    return erlang_c(servers, load) * hold_s / (servers - load)


def judge_pool(size: int, rate_per_s: float, hold_s: float) -> PoolVerdict:
    """Compare a pool of `size` with what its measured demand needs.

    Raises ValueError for negatives, what is no number, and more than a PostgreSQL can have.
    """
    load = rate_per_s * hold_s
    if not (
        1 <= size <= MAX_CONNECTIONS
        and 0 <= rate_per_s < math.inf
        and 0 <= hold_s < math.inf
        and load < MAX_CONNECTIONS
    ):
        raise ValueError(
            f"size {size}, rate_per_s {rate_per_s}, hold_s {hold_s}: expected a size of at least 1, no negatives, and a "
            f"size and a product of rate and hold of at most {MAX_CONNECTIONS} connections"
        )
    needed = _fewest(load)
    verdict: Literal["too small", "too large", "right"] = "right"
    if size < needed:
        verdict = "too small"
    elif size > MARGIN * needed:
        verdict = "too large"
    return PoolVerdict(verdict, size, needed, load, mean_wait_s(size, rate_per_s, hold_s))
