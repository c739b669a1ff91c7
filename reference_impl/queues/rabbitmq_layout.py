"""The queues on RabbitMQ that a `RabbitMQQueue` stands on.

- `{name}.{level}`: a quorum queue a class, because quorum queues refuse `x-max-priority`, and in classic ones priorities
  invert by the prefetch.
- `{name}.delay.{ms}`: quorum queues whose messages expire into the default exchange, by the routing key that they came with
  through the fanout exchange of the same name. Made when first needed, in powers of two.
- `{name}.dead`: what nobody could finish.
"""

from __future__ import annotations

import math
from typing import Final

from pamqp.common import FieldTable

__all__ = ["Layout", "delay_tier_ms"]

_SHORTEST_DELAY_MS: Final = 125
_LONGEST_TIER: Final = 24


def delay_tier_ms(delay_s: float) -> int:
    """The shortest delay queue that is long enough: a power of two of 125 ms. Raises ValueError beyond the longest."""
    wanted = max(1.0, delay_s * 1000 / _SHORTEST_DELAY_MS)
    tier = math.ceil(math.log2(wanted))
    if tier > _LONGEST_TIER:
        raise ValueError(f"delay_s is {delay_s:g}: expected at most 24 days")
    return _SHORTEST_DELAY_MS << tier


class Layout:
    """Names and arguments of the queues of `name`.

    Args:
        levels: classes. delivery_limit: redeliveries, beyond which the broker buries. capacity: of a class; None: no bound.
    """

    # A quorum queue without a delivery limit puts what is given back at its end.
    dead_arguments: Final[FieldTable] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2**31 - 1,
    }

    def __init__(self, name: str, levels: int, delivery_limit: int, capacity: int | None) -> None:
        self._name = name
        self.classes = [self.class_name(level) for level in range(levels)]
        self.dead = f"{name}.dead"
        self.class_arguments: FieldTable = {
            "x-queue-type": "quorum",
            "x-delivery-limit": delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.dead,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        if capacity is not None:
            self.class_arguments["x-max-length"] = capacity

    def class_name(self, level: int) -> str:
        return f"{self._name}.{level}"

    def delay_name(self, tier_ms: int) -> str:
        """Of a delay queue, and of the exchange through which it is reached."""
        return f"{self._name}.delay.{tier_ms}"

    def delay_arguments(self, tier_ms: int) -> FieldTable:
        return {
            "x-queue-type": "quorum",
            "x-message-ttl": tier_ms,
            "x-dead-letter-exchange": "",
            # The expired message leaves only when the other queue has confirmed it.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }

    @property
    def delays(self) -> list[str]:
        """Every delay queue that may exist."""
        tiers = range(_LONGEST_TIER + 1)
        return [self.delay_name(_SHORTEST_DELAY_MS << tier) for tier in tiers]
