"""How the shared cache's server, and the cache by meaning, behave in virtual time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from reference_impl.deployment import Spec
from simulation.scenario.distributions import Constant, Distribution

__all__ = ["CacheServerSpec", "SemanticAccuracy"]

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class CacheServerSpec(Spec):
    """The server behind `deployment.cache.shared`. Defaults: Valkey 9 on the loopback as redis-py sees it, 100 µs a command.

    Attributes:
        one_way_s: latency of a message between gateway and server.
        service_s: the server's one thread for a command; commands wait for each other.
        max_bytes: its memory; the least recently used values leave first.
    """

    one_way_s: Distribution = Constant(value=45e-6)
    service_s: Seconds = 5e-6
    max_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024


class SemanticAccuracy(Spec):
    """What a cache by meaning finds. Defaults: measured with the shipped encoder, gate and threshold (docs/caches.md).

    Attributes:
        recall: share of pairs of prompts that mean the same that it finds alike.
        false_hit_rate: share of prompts that it takes for one that means something else.
    """

    recall: Fraction = 0.568
    false_hit_rate: Fraction = 0.008
