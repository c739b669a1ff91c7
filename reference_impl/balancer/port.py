"""What a routing policy is: an order over the members of a pool, kept up to date as their load changes."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Member", "RoutingPolicy"]


class Member:
    """One instance in the eyes of a policy.

    `in_flight` counts the calls that it holds, `serial` the members that joined before it; `completed`, `failed` and
    `latency_s` (their sum) describe the calls that have ended. Policies keep what they know of a member to themselves.
    """

    __slots__ = (
        "capacity",
        "completed",
        "failed",
        "in_flight",
        "instance_id",
        "latency_s",
        "serial",
        "weight",
    )

    def __init__(self, instance_id: str, serial: int, weight: float, capacity: int) -> None:
        self.instance_id = instance_id
        self.serial = serial
        self.weight = weight
        self.capacity = capacity
        self.in_flight = 0.0
        self.completed = 0
        self.failed = 0
        self.latency_s = 0.0

    @property
    def share(self) -> float:
        """Weight x capacity; an unknown capacity (0) counts as 1."""
        return self.weight * (self.capacity or 1)

    @property
    def load(self) -> float:
        """Calls per share if one more came here (Envoy's least request: weight / (active + 1), inverted)."""
        return (self.in_flight + 1.0) / (self.weight * (self.capacity or 1))


class RoutingPolicy(Protocol):
    """Chooses among the members of one pool. The balancer tells it of every change."""

    def add(self, member: Member) -> None:
        """A member joins."""
        ...

    def remove(self, member: Member) -> None:
        """A member leaves."""
        ...

    def changed(self, member: Member) -> None:
        """The load, weight or capacity of a member has changed."""
        ...

    def select(self) -> Member | None:
        """The member for the next call, or None when the pool is empty."""
        ...
