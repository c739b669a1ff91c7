"""Timers that were cancelled: they hold nothing, never move the clock, and leave the queue."""

import asyncio
import gc
import tracemalloc
import weakref

import pytest

from simulation.kernel import SimulationLoop, run


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
    sizes: list[int] = []

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
                sizes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        run(main())
    finally:
        tracemalloc.stop()
    assert max(lengths) < 200
    assert sizes[1] - sizes[0] < 100_000


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
