"""Instances as the gateway, the balancer and the autoscaler see them, and the port to whatever starts and stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec

from reference_impl.llm.port import MessagesPort

__all__ = ["InstanceMetrics", "InstanceProvider", "InstanceStatus", "RunningInstance"]


class InstanceStatus(Enum):
    """Health of one instance."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class InstanceMetrics(msgspec.Struct, frozen=True):
    """What an instance reports of itself over its last interval.

    `latency_ms` is the mean latency of the calls that ended in the interval, in milliseconds; `error_rate`,
    `memory_usage` and `cpu_usage` are fractions of 1; `throughput` is completions per second. `in_flight` counts calls
    held or waiting at the instant of the report, `capacity` is its concurrency limit, `weight` its share under weighted
    balancing.
    """

    instance_id: str
    status: InstanceStatus = InstanceStatus.HEALTHY
    latency_ms: float = 0.0
    error_rate: float = 0.0
    throughput: float = 0.0
    memory_usage: float = 0.0
    cpu_usage: float = 0.0
    in_flight: int = 0
    capacity: int = 0
    weight: float = 1.0


class RunningInstance(msgspec.Struct, frozen=True):
    """An instance that is ready: its id and the port that answers calls on it.

    `ended` gets the reason as its result when the instance ends without having been asked to (None: never told); it is
    cancelled when the instance is stopped.
    """

    instance_id: str
    port: MessagesPort
    capacity: int
    ended: asyncio.Future[str] | None = None


class InstanceProvider(Protocol):
    """Starts and stops instances: worker processes live, models in virtual time."""

    async def start(self, instance_id: str) -> RunningInstance:
        """Boot an instance; returns when it is ready (no earlier than its drawn boot time).

        Raises `reference_impl.errors.UpstreamFailed` when it does not become ready in time. A cancelled start leaves
        nothing behind.
        """
        ...

    async def stop(self, instance_id: str, drain_s: float) -> None:
        """Let the instance finish what it has, for at most `drain_s`, then end it and close its port.

        Without effect when it has ended already.
        """
        ...

    def metrics(self) -> Sequence[InstanceMetrics]:
        """The latest report of every instance that is ready; reports older than three intervals show UNHEALTHY."""
        ...

    async def aclose(self) -> None:
        """End every instance at once."""
        ...
