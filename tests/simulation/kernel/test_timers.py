"""Timers that were cancelled: they hold nothing, never move the clock, and leave the queue."""

import asyncio
import gc
import tracemalloc
import weakref

import pytest

from simulation.kernel import Deadlock, KernelError, SimulationLoop, run, running_loop


def queue_length() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulationLoop)
    return len(loop._queue)


def test_a_cancelled_timer_gives_up_what_it_holds_at_once() -> None:
    class Payload:
        pass

    async def main() -> bool:
        payload = Payload()
        held = weakref.ref(payload)
        timer = asyncio.get_running_loop().call_later(100, print, payload)
        del payload
        assert held() is not None
        timer.cancel()
        return held() is None

    assert run(main())


def test_a_cancelled_timer_never_moves_the_clock() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(delay, print) for delay in (5, 50, 500)]
        await asyncio.sleep(1)
        for timer in timers:
            timer.cancel()
        await asyncio.Event().wait()

    with pytest.raises(Exception, match="nothing is left to happen at 1 s"):
        run(main())


def test_timers_know_their_time_and_whether_they_were_cancelled() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(5, print)
        assert isinstance(timer, asyncio.TimerHandle)
        assert (timer.when(), timer.cancelled()) == (5, False)
        timer.cancel()
        timer.cancel()
        assert timer.cancelled()
        fired = loop.call_later(1, lambda: None)
        await asyncio.sleep(2)
        assert not fired.cancelled()
        with pytest.raises(ValueError, match="nan"):
            loop.call_later(float("nan"), print)
        with pytest.raises(ValueError, match="nan"):
            loop.call_at(float("nan"), print)

    run(main())


def test_long_timeouts_of_short_requests_do_not_fill_the_queue_or_the_memory() -> None:
    """100 requests/s under timeout(600): 60,000 dead timers if nobody dropped them."""
    lengths: list[int] = []
    held: list[tracemalloc.Snapshot] = []
    # What other threads of this process, or finalizers of earlier tests, hold is not the loop's.
    ours = [tracemalloc.Filter(True, f"*/{part}/*") for part in ("asyncio", "kernel")]

    async def request() -> None:
        async with asyncio.timeout(600):
            await asyncio.sleep(0.05)

    async def main() -> None:
        for second in range(300):
            for _ in range(100):
                await asyncio.sleep(0.01)
                asyncio.get_running_loop().create_task(request())
            lengths.append(queue_length())
            if second in (50, 299):
                gc.collect()
                held.append(tracemalloc.take_snapshot().filter_traces(ours))

    tracemalloc.start()
    try:
        run(main())
    finally:
        tracemalloc.stop()
    assert max(lengths) < 200
    growth = held[1].compare_to(held[0], "lineno")
    assert sum(line.size_diff for line in growth) < 100_000, growth[:5]


def test_dropping_dead_timers_keeps_the_order_of_the_living() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        order: list[int] = []
        timers = [loop.call_at(10 + number % 7, order.append, number) for number in range(1000)]
        for number, timer in enumerate(timers):
            if number % 10:
                timer.cancel()
        assert queue_length() < 300
        await asyncio.sleep(100)
        return order

    assert run(main()) == sorted(range(0, 1000, 10), key=lambda number: (number % 7, number))


def test_dead_timers_are_counted_off_as_their_time_passes() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        dead: list[int] = []
        for timer in [loop.call_later(delay, print) for delay in range(1, 41)]:
            timer.cancel()
            timer.cancel()
        for _ in range(5):
            dead.append(loop._dead)
            await asyncio.sleep(10.5)
        return dead

    assert run(main()) == [40, 30, 19, 9, 0]


def test_until_is_done_at_its_instant_in_the_order_of_the_timers() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = running_loop()
        order: list[tuple[str, float]] = []

        async def wait(name: str, when: float) -> None:
            await loop.until(when)
            order.append((name, loop.time()))

        async def sleep(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            order.append((name, loop.time()))

        async with asyncio.TaskGroup() as group:
            group.create_task(wait("late", 3))
            group.create_task(wait("first", 1))
            group.create_task(sleep("slept", 1))
            group.create_task(wait("second", 1))
            group.create_task(wait("past", -5))
        return order

    expected = [("past", 0.0), ("first", 1.0), ("slept", 1.0), ("second", 1.0), ("late", 3.0)]
    assert run(main()) == expected


def test_a_cancelled_until_never_moves_the_clock() -> None:
    async def main() -> None:
        loop = running_loop()
        task = asyncio.create_task(asyncio.wait_for(loop.until(500), 1))
        with pytest.raises(TimeoutError):
            await task
        await asyncio.Event().wait()

    with pytest.raises(Exception, match="nothing is left to happen at 1 s"):
        run(main())


def test_a_time_out_wins_against_an_until_of_the_same_instant() -> None:
    async def main() -> None:
        async with asyncio.timeout(2):
            await running_loop().until(2)

    with pytest.raises(TimeoutError):
        run(main())


def test_cancelled_untils_leave_the_queue_with_the_cancelled_timers() -> None:
    async def main() -> int:
        loop = running_loop()
        for _ in range(1000):
            loop.until(1e6).cancel()
        for _ in range(2000):
            loop.call_at(1e6, print).cancel()
        return queue_length()

    assert run(main()) < 300


def test_until_refuses_an_instant_that_is_not_a_number() -> None:
    async def main() -> None:
        await running_loop().until(float("nan"))

    with pytest.raises(ValueError, match="nan"):
        run(main())


def test_background_tasks_that_await_until_do_not_hide_a_deadlock() -> None:
    async def beat() -> None:
        loop = running_loop()
        while True:
            await loop.until(loop.time() + 1)

    async def main() -> None:
        heartbeat = asyncio.create_task(beat(), name="background:heartbeat")
        await asyncio.Event().wait()
        heartbeat.cancel()

    with pytest.raises(Deadlock, match="only background tasks"):
        run(main(), background_patience_s=100)


def test_running_loop_names_the_way_into_virtual_time() -> None:
    async def main() -> None:
        running_loop()

    with pytest.raises(KernelError, match=r"use simulation\.kernel\.run"):
        asyncio.run(main())
