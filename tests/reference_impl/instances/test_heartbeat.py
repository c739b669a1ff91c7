"""Heartbeats at both ends, in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from reference_impl.errors import ConnectionFailed
from reference_impl.instances.heartbeat import HeartbeatLog, HeartbeatSender
from reference_impl.instances.port import InstanceMetrics, InstanceStatus
from reference_impl.instances.process_usage import process_usage
from simulation.kernel import run

HEALTHY, _, UNHEALTHY = InstanceStatus


async def send_for(
    limit_s: float,
    post: Callable[[InstanceMetrics], Awaitable[None]],
    on_orphaned: Callable[[], None] | None = None,
) -> HeartbeatSender:
    sender = HeartbeatSender(
        lambda: InstanceMetrics("instance-1"),
        post,
        1.0,
        on_orphaned=on_orphaned,
        orphaned_after=3,
    )
    task = asyncio.create_task(sender.run(), name="background:heartbeat")
    await asyncio.sleep(limit_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return sender


def test_reports_leave_at_absolute_deadlines_however_long_one_travels() -> None:
    async def main() -> list[float]:
        sent: list[float] = []

        async def post(report: InstanceMetrics) -> None:
            sent.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.25)

        await send_for(4.5, post)
        return sent

    assert run(main()) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_report_that_cannot_be_delivered_is_dropped_for_the_next() -> None:
    async def main() -> tuple[int, int]:
        async def post(report: InstanceMetrics) -> None:
            if asyncio.get_running_loop().time() == 1.0:
                await asyncio.Event().wait()  # hangs: given up when the next is due
            if asyncio.get_running_loop().time() == 3.0:
                raise ConnectionFailed("refused")
            if asyncio.get_running_loop().time() == 4.0:
                raise ConnectionResetError

        sender = await send_for(5.5, post)
        return sender.sent, sender.missed

    assert run(main()) == (3, 3)


def test_an_instance_that_nobody_listens_to_is_told_once() -> None:
    async def main() -> list[float]:
        loop, told = asyncio.get_running_loop(), list[float]()

        async def post(report: InstanceMetrics) -> None:
            # Two misses, one delivery, then silence.
            if loop.time() != 2.0:
                raise ConnectionFailed("refused")

        await send_for(20.5, post, on_orphaned=lambda: told.append(loop.time()))
        return told

    assert run(main()) == [5.0]


def test_silence_of_three_intervals_shows_as_unhealthy() -> None:
    async def main() -> None:
        log = HeartbeatLog(interval_s=1.0)
        log.expect("instance-1", 4)
        report = InstanceMetrics("instance-1", cpu_usage=0.5, capacity=4)
        assert log.metrics() == [InstanceMetrics("instance-1", capacity=4)]
        await asyncio.sleep(2.0)
        assert log.report(report)
        await asyncio.sleep(3.0)
        assert log.metrics() == [report]
        await asyncio.sleep(0.125)
        assert log.metrics() == [msgspec.structs.replace(report, status=UNHEALTHY)]
        assert log.report(report)
        assert log.metrics() == [report]

    run(main())


def test_an_instance_that_never_reports_is_unhealthy_after_three_intervals() -> None:
    async def main() -> None:
        log = HeartbeatLog(interval_s=1.0)
        log.expect("instance-1", 4)
        await asyncio.sleep(3.125)
        assert [m.status for m in log.metrics()] == [UNHEALTHY]

    run(main())


def test_reports_of_instances_that_are_gone_are_ignored() -> None:
    async def main() -> None:
        log = HeartbeatLog(interval_s=1.0)
        assert not log.report(InstanceMetrics("instance-1"))
        log.expect("instance-1", 4)
        log.forget("instance-1")
        log.forget("instance-1")
        assert not log.report(InstanceMetrics("instance-1"))
        assert log.metrics() == []

    run(main())


def test_a_report_survives_the_wire() -> None:
    report = InstanceMetrics("instance-1", InstanceStatus.DEGRADED, 12.5, 0.1, 3.0, 0.2, 0.4, 5, 16)
    wire = msgspec.json.encode(report)
    assert msgspec.json.decode(wire, type=InstanceMetrics) == report


def test_the_usage_of_this_process_is_a_pair_of_fractions() -> None:
    usage = process_usage()
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    cpu, memory = usage()
    assert 0.0 < cpu <= 1.0
    assert 0.0 < memory < 1.0
