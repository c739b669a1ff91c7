"""SimPy's processes and resources beside asyncio's tasks, in one time."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
import simpy

from simulation.kernel import KernelError, SimulationLoop, as_event, await_event, run

Process = Generator[simpy.Event, Any, Any]


def the_loop() -> SimulationLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulationLoop)
    return loop


def test_a_coroutine_awaits_an_event_and_gets_its_value() -> None:
    async def main() -> tuple[object, float]:
        loop = the_loop()
        return await await_event(loop.env.timeout(5, "value")), loop.time()

    assert run(main()) == ("value", 5)


def test_an_event_that_has_happened_is_awaited_without_waiting() -> None:
    async def main() -> object:
        event = the_loop().env.timeout(1, "long ago")
        await asyncio.sleep(2)
        return await await_event(event)

    assert run(main()) == "long ago"


def test_the_failure_of_an_event_is_raised_where_it_is_awaited() -> None:
    async def main() -> None:
        loop = the_loop()

        def process() -> Process:
            yield loop.env.timeout(1)
            raise LookupError("in the process")

        with pytest.raises(LookupError, match="in the process"):
            await await_event(loop.process(process()))

    run(main())


def test_the_failure_of_an_event_that_nobody_awaits_ends_the_run_as_in_simpy() -> None:
    async def main() -> None:
        loop = the_loop()

        def process() -> Process:
            yield loop.env.timeout(1)
            raise LookupError("in the process")

        loop.process(process())
        await asyncio.sleep(10)

    with pytest.raises(LookupError, match="in the process"):
        run(main())


def test_a_failure_that_comes_after_its_waiter_gave_up_is_not_lost() -> None:
    async def main() -> None:
        loop = the_loop()
        event = loop.env.event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await await_event(event)
        event.fail(LookupError("too late"))
        await asyncio.sleep(1)

    with pytest.raises(LookupError, match="too late"):
        run(main())


def test_a_process_waits_for_a_future_and_for_a_task() -> None:
    async def main() -> tuple[object, float]:
        loop = the_loop()
        future = loop.create_future()
        task = asyncio.create_task(asyncio.sleep(3, "slept"))

        def process() -> Process:
            first = yield as_event(future)
            second = yield as_event(task)
            return first, second

        loop.call_later(2, future.set_result, "set")
        return await await_event(loop.process(process())), loop.time()

    assert run(main()) == (("set", "slept"), 3)


def test_a_process_sees_the_failure_and_the_cancellation_of_a_future() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        seen: list[str] = []
        failing, cancelled = loop.create_future(), loop.create_future()

        def process() -> Process:
            for future in (failing, cancelled):
                try:
                    yield as_event(future)
                except (LookupError, asyncio.CancelledError) as error:
                    seen.append(repr(error))

        loop.call_later(1, failing.set_exception, LookupError("failed"))
        loop.call_later(2, cancelled.cancel)
        await await_event(loop.process(process()))
        return seen

    assert run(main()) == ["LookupError('failed')", "CancelledError()"]


def test_tasks_and_processes_queue_at_one_resource() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        desk = simpy.Resource(loop.env, capacity=1)
        served: list[str] = []

        async def task() -> None:
            with desk.request() as request:
                await await_event(request)
                await asyncio.sleep(2)
                served.append(f"task at {loop.time():g}")

        def process() -> Process:
            with desk.request() as request:
                yield request
                yield loop.env.timeout(2)
                served.append(f"process at {loop.time():g}")

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(task())
                loop.process(process())
        await asyncio.sleep(1)
        return served

    assert run(main()) == ["process at 2", "process at 4", "task at 6", "task at 8"]


def test_a_task_that_is_cancelled_in_the_queue_of_a_resource_leaves_it() -> None:
    async def main() -> tuple[int, int]:
        loop = the_loop()
        desk = simpy.Resource(loop.env, capacity=1)

        async def customer() -> None:
            with desk.request() as request:
                await await_event(request)
                await asyncio.sleep(10)

        tasks = [asyncio.create_task(customer()) for _ in range(3)]
        await asyncio.sleep(1)
        for task in tasks[:2]:  # the one at the desk, and the first in the queue
            task.cancel()
        await asyncio.sleep(1)
        state = desk.count, len(desk.queue)
        await tasks[2]
        return state

    assert run(main()) == (1, 0)


def test_a_process_is_interrupted_by_a_task() -> None:
    async def main() -> object:
        loop = the_loop()

        def process() -> Process:
            try:
                yield loop.env.timeout(100)
            except simpy.Interrupt as interrupt:
                return interrupt.cause, loop.env.now

        running = loop.process(process())
        await asyncio.sleep(3)
        running.interrupt("enough")
        return await await_event(running)

    assert run(main()) == ("enough", 3)


def test_a_process_can_yield_a_timer_of_asyncio() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        order: list[str] = []

        def process(timer: Any) -> Process:
            yield timer
            order.append(f"process at {loop.time():g}")

        loop.process(process(loop.call_later(2, order.append, "timer")))
        await asyncio.sleep(3)
        return order

    assert run(main()) == ["timer", "process at 2"]


def test_events_of_other_worlds_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(KernelError, match="another environment"):
            await await_event(simpy.Environment().timeout(1))

    run(main())

    async def live() -> None:
        with pytest.raises(KernelError, match="without an environment"):
            as_event(asyncio.get_running_loop().create_future())

    asyncio.run(live())


# The rule for one instant, as the docstring of simulation.kernel.loop states it.


def test_simpys_events_of_an_instant_happen_before_its_callbacks_in_their_own_order() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        order: list[str] = []

        def process(name: str) -> Process:
            yield loop.env.timeout(1)
            order.append(f"{name} wakes")
            yield loop.env.timeout(0)
            order.append(f"{name} wakes again")

        loop.call_at(1, order.append, "first timer")
        loop.process(process("p"))
        loop.process(process("q"))
        loop.call_at(1, order.append, "second timer")
        await asyncio.sleep(2)
        return order

    assert run(main()) == [
        "p wakes",
        "q wakes",
        "p wakes again",
        "q wakes again",
        "first timer",
        "second timer",
    ]


def test_an_urgent_event_overtakes_the_others_of_its_instant() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        order: list[str] = []

        def started(name: str) -> Process:
            order.append(f"{name} starts")  # Initialize is urgent
            yield loop.env.timeout(0)

        def starter() -> Process:
            yield loop.env.timeout(1)
            order.append("starter")
            loop.process(started("new"))

        def other() -> Process:
            yield loop.env.timeout(1)
            order.append("other")

        loop.process(starter())
        loop.process(other())
        await asyncio.sleep(2)
        return order

    assert run(main()) == ["starter", "new starts", "other"]


@pytest.mark.parametrize("event_first", [True, False])
def test_a_timeout_wins_against_an_event_of_the_same_instant(event_first: bool) -> None:
    async def main() -> str:
        loop = the_loop()
        event = loop.env.timeout(1) if event_first else None
        try:
            async with asyncio.timeout_at(1):
                await await_event(event or loop.env.timeout(1))
        except TimeoutError:
            return "timeout"
        return "event"

    assert run(main()) == "timeout"


def test_what_a_callback_triggers_happens_in_the_next_turn() -> None:
    async def main() -> list[str]:
        loop = the_loop()
        order: list[str] = []
        event = loop.env.event()

        async def waiter() -> None:
            await await_event(event)
            order.append("waiter")

        async def trigger() -> None:
            loop.call_soon(order.append, "ready before")
            event.succeed()
            loop.call_soon(order.append, "ready after")

        await asyncio.gather(waiter(), trigger())
        return order

    assert run(main()) == ["ready before", "ready after", "waiter"]
