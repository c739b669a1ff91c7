"""The balancer: which instance takes the next call.

It keeps count of the calls in flight itself, where the decisions are made: reports come once a second, and hundreds of
calls are placed between two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from reference_impl.balancer.least_loaded import LeastLoaded
from reference_impl.balancer.port import Member, RoutingPolicy
from reference_impl.balancer.power_of_two import Draw, PowerOfChoices, counter_draw
from reference_impl.balancer.round_robin import RoundRobin
from reference_impl.balancer.weighted import SmoothWeighted
from reference_impl.instances.port import InstanceMetrics, InstanceStatus

__all__ = ["ROUTING_POLICIES", "BalancerStatistics", "LoadBalancer", "MemberStatistics"]

_HEALTHY: Final = InstanceStatus.HEALTHY
_DEGRADED: Final = InstanceStatus.DEGRADED

ROUTING_POLICIES: Final = ("least_loaded", "round_robin", "weighted", "power_of_two")


class MemberStatistics(msgspec.Struct, frozen=True):
    """One instance as the balancer sees it; `latency_s` is the mean over the calls that have ended."""

    instance_id: str
    status: InstanceStatus
    in_flight: int
    completed: int
    failed: int
    latency_s: float


class BalancerStatistics(msgspec.Struct, frozen=True):
    """The balancer at one instant. `unserved` selections found no instance."""

    policy: str
    selected: int
    unserved: int
    in_flight: int
    members: tuple[MemberStatistics, ...]


class _Pools:
    """The policy twice: over healthy members, and over degraded ones for when no healthy one is left."""

    def __init__(self, make: Callable[[], RoutingPolicy]) -> None:
        self._healthy = make()
        self._degraded = make()

    def of(self, status: InstanceStatus) -> RoutingPolicy | None:
        # Not a dictionary: an enum's hash is Python code, and this is asked twice a call.
        if status is _HEALTHY:
            return self._healthy
        return self._degraded if status is _DEGRADED else None

    def select(self) -> Member | None:
        return self._healthy.select() or self._degraded.select()


class LoadBalancer:
    """Chooses instances by `routing_policy`: least_loaded, round_robin, weighted (smooth), or power_of_two (of `choices`).

    UNHEALTHY instances are not selected, DEGRADED ones only when no healthy one is left.

    The caller tells of each call's start and end (`started`, `finished`). A balancer that was never told of a start goes
    by the loads in the reports: their `in_flight` or, where a report has none, throughput x latency (Little's law).
    """

    def __init__(
        self,
        routing_policy: str = "least_loaded",
        *,
        seed: int = 0,
        choices: int = 2,
        draw: Draw | None = None,
    ) -> None:
        """`draw`, or else `seed` and `choices`, gives power_of_two its uniforms. Raises ValueError for an unknown policy."""
        self._draw = draw or counter_draw(seed, choices)
        self._members: dict[str, Member] = {}
        self._reports: dict[str, InstanceMetrics] = {}
        self._leaving: dict[str, Member] = {}
        self._idle: dict[str, asyncio.Future[None]] = {}
        self._counts_calls = False
        self._joined = 0
        self._selected = 0
        self._unserved = 0
        self.routing_policy = routing_policy

    @property
    def routing_policy(self) -> str:
        """The name of the policy; setting it starts the new one afresh over the same members."""
        return self._routing_policy

    @routing_policy.setter
    def routing_policy(self, name: str) -> None:
        makers: dict[str, Callable[[], RoutingPolicy]] = {
            "least_loaded": LeastLoaded,
            "round_robin": RoundRobin,
            "weighted": SmoothWeighted,
            "power_of_two": lambda: PowerOfChoices(self._draw),
        }
        if name not in makers:
            raise ValueError(
                f"routing_policy: {name!r} is unknown; allowed: {', '.join(ROUTING_POLICIES)}"
            )
        self._routing_policy = name
        self._pools = _Pools(makers[name])
        for instance_id, member in self._members.items():
            pool = self._pools.of(self._reports[instance_id].status)
            if pool is not None:
                pool.add(member)

    def add_instance(self, metrics: InstanceMetrics) -> None:
        """Let an instance take calls. Raises ValueError when its id is taken or its weight is not positive."""
        instance_id = metrics.instance_id
        if instance_id in self._members:
            raise ValueError(f"instance {instance_id!r} is in the balancer already; use update()")
        _check_weight(metrics)
        self._joined += 1
        member = Member(instance_id, self._joined, metrics.weight, metrics.capacity)
        left = self._leaving.pop(instance_id, None)
        if left is not None:
            # Calls from before it was removed are still on it.
            member.in_flight = left.in_flight
        elif not self._counts_calls:
            member.in_flight = _reported_load(metrics)
        self._members[instance_id] = member
        self._reports[instance_id] = metrics
        pool = self._pools.of(metrics.status)
        if pool is not None:
            pool.add(member)

    def update(self, metrics: InstanceMetrics) -> bool:
        """Take an instance's new report: status, weight, capacity. False when it is not in the balancer (any more)."""
        instance_id = metrics.instance_id
        member = self._members.get(instance_id)
        if member is None:
            return False
        _check_weight(metrics)
        old = self._reports[instance_id].status
        self._reports[instance_id] = metrics
        changed = False
        if metrics.weight != member.weight or metrics.capacity != member.capacity:
            member.weight, member.capacity = metrics.weight, metrics.capacity
            changed = True
        if not self._counts_calls:
            member.in_flight, changed = _reported_load(metrics), True
        old_pool, pool = self._pools.of(old), self._pools.of(metrics.status)
        if old_pool is not pool:
            if old_pool is not None:
                old_pool.remove(member)
            if pool is not None:
                pool.add(member)
        elif pool is not None and changed:
            pool.changed(member)
        return True

    def remove_instance(self, instance_id: str) -> bool:
        """No new calls for it; those in flight stay counted. False when it is not in the balancer."""
        member = self._members.pop(instance_id, None)
        if member is None:
            return False
        pool = self._pools.of(self._reports.pop(instance_id).status)
        if pool is not None:
            pool.remove(member)
        if self._counts_calls and member.in_flight:
            self._leaving[instance_id] = member
        return True

    def select_instance(self) -> str | None:
        """The id of the instance for the next call, or None when none can take it. O(log n) at most."""
        member = self._pools.select()
        if member is None:
            self._unserved += 1
            return None
        self._selected += 1
        return member.instance_id

    def started(self, instance_id: str) -> None:
        """A call goes to the instance; to be told right after its selection. KeyError: it is not in the balancer."""
        if not self._counts_calls:
            self._counts_calls = True
            for member in self._members.values():
                member.in_flight = 0.0
                self._changed(member)
        member = self._members[instance_id]
        member.in_flight += 1
        self._changed(member)

    def finished(self, instance_id: str, latency_s: float, ok: bool) -> None:
        """A call that was `started` has ended, after `latency_s`. Raises ValueError when none is in flight there."""
        member = self._members.get(instance_id) or self._leaving.get(instance_id)
        if member is None or member.in_flight < 1:
            raise ValueError(f"no call is in flight on instance {instance_id!r}")
        member.in_flight -= 1
        member.completed += 1
        member.latency_s += latency_s
        if not ok:
            member.failed += 1
        if instance_id in self._members:
            self._changed(member)
        elif member.in_flight == 0:
            del self._leaving[instance_id]
        if member.in_flight == 0 and instance_id in self._idle:
            idle = self._idle.pop(instance_id)
            if not idle.done():
                idle.set_result(None)

    def in_flight(self, instance_id: str) -> int:
        """Calls on the instance by this balancer's count, also after its removal; 0 for an unknown one."""
        member = self._members.get(instance_id) or self._leaving.get(instance_id)
        return int(member.in_flight) if member is not None else 0

    async def wait_idle(self, instance_id: str) -> None:
        """Return once no call is in flight on the instance."""
        while self.in_flight(instance_id):
            idle = self._idle.get(instance_id)
            if idle is None:
                idle = self._idle[instance_id] = asyncio.get_running_loop().create_future()
            await asyncio.shield(idle)

    def statistics(self) -> BalancerStatistics:
        members = tuple(
            MemberStatistics(
                instance_id=instance_id,
                status=self._reports[instance_id].status,
                in_flight=int(member.in_flight),
                completed=member.completed,
                failed=member.failed,
                latency_s=member.latency_s / member.completed if member.completed else 0.0,
            )
            for instance_id, member in self._members.items()
        )
        return BalancerStatistics(
            policy=self._routing_policy,
            selected=self._selected,
            unserved=self._unserved,
            in_flight=sum(m.in_flight for m in members)
            + sum(int(m.in_flight) for m in self._leaving.values()),
            members=members,
        )

    def _changed(self, member: Member) -> None:
        pool = self._pools.of(self._reports[member.instance_id].status)
        if pool is not None:
            pool.changed(member)


def _check_weight(metrics: InstanceMetrics) -> None:
    if not metrics.weight > 0:
        raise ValueError(
            f"instance {metrics.instance_id!r}: weight must be positive, is {metrics.weight}"
        )


def _reported_load(metrics: InstanceMetrics) -> float:
    return float(metrics.in_flight) or metrics.throughput * metrics.latency_ms / 1000.0
