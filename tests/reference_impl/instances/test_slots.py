"""Slots: order, bound, exact accounts, and nothing leaked whatever is cancelled (invariant 6)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.errors import Rejected
from reference_impl.instances.slots import SlotLease, Slots
from reference_impl.telemetry import RequestTrace
from simulation.kernel import run


async def hold(slots: Slots, hold_s: float, log: list[str], name: str) -> None:
    lease = slots.lease(RequestTrace())
    await lease.acquire()
    log.append(name)
    await asyncio.sleep(hold_s)
    lease.release()


def test_an_uncontended_slot_is_taken_without_a_future_or_a_switch_of_tasks() -> None:
    async def main() -> None:
        slots = Slots(1, 0)
        acquire = slots.lease(RequestTrace()).acquire()
        with pytest.raises(StopIteration):  # it ends at the first step: nothing was awaited
            acquire.send(None)
        assert slots.statistics().busy == 1

    run(main())


def test_waiters_are_served_in_the_order_of_their_arrival() -> None:
    async def main() -> None:
        slots, log = Slots(2, 10), list[str]()
        await asyncio.gather(*(hold(slots, 1.0, log, f"{n}") for n in range(7)))
        assert log == ["0", "1", "2", "3", "4", "5", "6"]
        assert asyncio.get_running_loop().time() == 4.0

    run(main())


def test_nobody_overtakes_a_waiter_at_the_instant_of_a_release() -> None:
    async def main() -> None:
        slots, log = Slots(1, 10), list[str]()
        first, waiter = slots.lease(RequestTrace()), hold(slots, 1.0, log, "waiter")
        await first.acquire()
        task = asyncio.create_task(waiter)
        await asyncio.sleep(1.0)
        first.release()
        await hold(slots, 1.0, log, "newcomer")  # asks before the waiter's task has run
        await task
        assert log == ["waiter", "newcomer"]

    run(main())


def test_a_newcomer_is_rejected_when_the_queue_is_full_and_an_admitted_call_is_not() -> None:
    async def main() -> None:
        slots = Slots(1, 1, "instance-1 slots")
        admitted, log = slots.lease(RequestTrace()), list[str]()
        await admitted.acquire()
        admitted.release()  # it waits between two attempts
        holders = [asyncio.create_task(hold(slots, 5.0, log, f"{n}")) for n in range(2)]
        await asyncio.sleep(1.0)
        with pytest.raises(Rejected, match="instance-1 slots: all 1 slots are busy and 1 calls"):
            await slots.lease(RequestTrace()).acquire()
        assert slots.statistics().rejected == 1
        await admitted.acquire()
        assert asyncio.get_running_loop().time() == 10.0
        admitted.release()
        await asyncio.gather(*holders)

    run(main())


def test_the_wait_is_written_to_the_trace_each_time() -> None:
    async def main() -> None:
        slots, trace, log = Slots(1, 10), RequestTrace(), list[str]()
        lease = slots.lease(trace)
        blocker = asyncio.create_task(hold(slots, 2.0, log, "blocker"))
        await asyncio.sleep(0.5)
        await lease.acquire()
        assert trace.instance_wait_s == 1.5
        lease.release()
        blocker = asyncio.create_task(hold(slots, 1.0, log, "blocker"))
        await asyncio.sleep(0.75)
        await lease.acquire()
        assert trace.instance_wait_s == 1.75
        lease.release()
        await blocker

    run(main())


def test_a_cancelled_wait_is_written_to_the_trace_too() -> None:
    async def main() -> None:
        slots, trace = Slots(1, 10), RequestTrace()
        await slots.lease(RequestTrace()).acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await slots.lease(trace).acquire()
        assert trace.instance_wait_s == 3.0

    run(main())


def test_a_slot_granted_to_a_waiter_that_is_cancelled_at_that_instant_goes_to_the_next() -> None:
    async def main() -> None:
        slots, log = Slots(1, 10), list[str]()
        first = slots.lease(RequestTrace())
        await first.acquire()
        doomed = asyncio.create_task(hold(slots, 1.0, log, "doomed"))
        heir = asyncio.create_task(hold(slots, 1.0, log, "heir"))
        await asyncio.sleep(1.0)
        first.release()  # grants it to the doomed, whose task has not run when it is cancelled
        doomed.cancel()
        await asyncio.gather(doomed, heir, return_exceptions=True)
        assert log == ["heir"]
        assert asyncio.get_running_loop().time() == 2.0
        assert slots.statistics().busy == 0

    run(main())


def test_a_release_passes_over_a_waiter_that_was_cancelled_before() -> None:
    async def main() -> None:
        slots, log = Slots(1, 10), list[str]()
        first = slots.lease(RequestTrace())
        await first.acquire()
        doomed = asyncio.create_task(hold(slots, 1.0, log, "doomed"))
        heir = asyncio.create_task(hold(slots, 1.0, log, "heir"))
        await asyncio.sleep(1.0)
        doomed.cancel()
        first.release()  # the doomed task has not run yet
        await asyncio.gather(doomed, heir, return_exceptions=True)
        assert log == ["heir"]
        statistics = slots.statistics()
        assert (statistics.busy, statistics.waiting, statistics.abandoned) == (0, 0, 1)

    run(main())


def test_a_lease_is_released_once_and_cannot_be_acquired_twice() -> None:
    async def main() -> None:
        slots = Slots(2, 0)
        lease = slots.lease(RequestTrace())
        await lease.acquire()
        with pytest.raises(RuntimeError, match="held already"):
            await lease.acquire()
        lease.release()
        lease.release()
        assert slots.statistics().busy == 0
        with pytest.raises(RuntimeError, match="not held"):
            slots.release()

    run(main())


def test_a_sample_holds_the_exact_integrals_of_its_interval() -> None:
    async def main() -> None:
        await asyncio.sleep(100.0)  # the run starts at 100 s on the loop's clock
        slots, log = Slots(2, 10, "instance-1 slots"), list[str]()
        tasks = [asyncio.create_task(hold(slots, 3.0, log, f"{n}")) for n in range(3)]
        await asyncio.sleep(4.0)
        sample = slots.sample(origin_s=100.0)
        assert (sample.t_s, sample.interval_s) == (4.0, 4.0)
        assert (sample.station, sample.kind, sample.capacity) == ("instance-1 slots", "slots", 2)
        assert (sample.arrivals, sample.completions) == (3, 2)
        assert sample.busy_s == 3.0 + 3.0 + 1.0
        assert sample.in_service == 7.0 / 4.0
        assert sample.queue_length == 3.0 / 4.0
        await asyncio.gather(*tasks)
        await asyncio.sleep(2.0)
        sample = slots.sample(origin_s=100.0)
        assert (sample.t_s, sample.interval_s) == (8.0, 4.0)
        assert (sample.arrivals, sample.completions, sample.busy_s) == (0, 1, 2.0)
        assert sample.queue_length == 0.0
        assert slots.sample(origin_s=100.0).interval_s == 0.0

    run(main())


@pytest.mark.parametrize(("capacity", "queue_limit"), [(0, 1), (-1, 1), (1, -1)])
def test_impossible_bounds_are_refused(capacity: int, queue_limit: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="must"):
            Slots(capacity, queue_limit)

    run(main())


# Quarters of a second: instants coincide often, and floats add up exactly.
quarters = st.integers(0, 12).map(lambda n: n / 4)
visits = st.lists(
    st.tuples(
        quarters,  # arrives at
        quarters,  # holds the slot for
        st.none() | quarters,  # gives it back for so long, then holds it as long again
        st.none() | quarters,  # is cancelled so long after its arrival
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=200)
@given(capacity=st.integers(1, 3), queue_limit=st.integers(0, 5), plan=visits)
def test_whatever_is_cancelled_every_slot_returns_and_the_accounts_are_exact(
    capacity: int,
    queue_limit: int,
    plan: list[tuple[float, float, float | None, float | None]],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        slots = Slots(capacity, queue_limit)
        held = 0
        held_s = waited_s = 0.0

        async def use(lease: SlotLease, hold_s: float) -> None:
            nonlocal held, held_s
            held += 1
            assert held <= capacity
            from_s = loop.time()
            try:
                await asyncio.sleep(hold_s)
            finally:
                held -= 1
                held_s += loop.time() - from_s

        async def visit(hold_s: float, pause_s: float | None) -> None:
            nonlocal waited_s
            trace = RequestTrace()
            lease = slots.lease(trace)
            try:
                await lease.acquire()
                await use(lease, hold_s)
                if pause_s is not None:
                    lease.release()
                    await asyncio.sleep(pause_s)
                    await lease.acquire()
                    await use(lease, hold_s)
            finally:
                lease.release()
                waited_s += trace.instance_wait_s

        async def arrive(
            at_s: float, hold_s: float, pause_s: float | None, cancel_s: float | None
        ) -> None:
            await asyncio.sleep(at_s)
            task = asyncio.create_task(visit(hold_s, pause_s))
            if cancel_s is not None:
                loop.call_later(cancel_s, task.cancel)
            await asyncio.gather(task, return_exceptions=True)
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, Rejected), error

        await asyncio.gather(*(arrive(*row) for row in plan))
        statistics = slots.statistics()
        assert (statistics.busy, statistics.waiting) == (0, 0)
        assert statistics.arrivals == statistics.completions + statistics.abandoned
        assert statistics.busy_s == held_s
        assert statistics.waiting_s == waited_s

    run(main())
