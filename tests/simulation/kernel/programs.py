"""Small asyncio programs whose order of happening must be the same in both worlds.

Each takes a function `say(text)` and a time unit in seconds. Live, a unit is short; in virtual
time it is 1. A program says what happens in the order in which it happens.
"""

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

Say = Callable[[object], None]
Program = Callable[[Say, float], Awaitable[None]]


# -------------------------------------------------------------------- one instant


async def timers_of_one_instant_run_before_what_they_call_soon(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    when, done = loop.time() + unit_s, loop.create_future()

    def timer(name: str) -> None:
        say(name)
        loop.call_soon(say, f"soon after {name}")
        if name == "t3":
            loop.call_soon(done.set_result, None)

    for name in ("t1", "t2", "t3"):
        loop.call_at(when, timer, name)
    await done


async def a_timer_that_is_due_at_once_comes_after_what_was_ready(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0, say, "timer")
    loop.call_soon(say, "soon")
    loop.call_soon(lambda: loop.call_soon(say, "soon after soon"))
    for _ in range(3):
        await asyncio.sleep(0)
        say("turn")


async def timers_of_the_past_run_by_their_time(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() - unit_s, say, "one unit ago")
    loop.call_at(loop.time() - 2 * unit_s, say, "two units ago")
    loop.call_later(-3 * unit_s, say, "three units ago")
    await asyncio.sleep(unit_s)


async def a_timeout_wins_against_a_result_set_before_it(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    when, result = loop.time() + unit_s, loop.create_future()
    loop.call_at(when, result.set_result, "result")
    try:
        async with asyncio.timeout_at(when):
            say(await result)
    except TimeoutError:
        say("timeout")


async def a_timeout_wins_against_a_result_set_after_it(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    when, result = loop.time() + unit_s, loop.create_future()
    try:
        async with asyncio.timeout_at(when):
            loop.call_at(when, lambda: None if result.done() else result.set_result("result"))
            say(await result)
    except TimeoutError:
        say("timeout")


async def a_timer_cancelled_by_another_of_its_instant_does_not_run(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    when = loop.time() + unit_s

    def first() -> None:
        say("first")
        second.cancel()

    loop.call_at(when, first)
    second: asyncio.TimerHandle = loop.call_at(when, say, "second")
    third = loop.call_at(when, say, "third")
    await asyncio.sleep(2 * unit_s)
    say(second.cancelled())
    say(third.cancelled())


async def a_callback_that_was_cancelled_while_ready_does_not_run(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: handle.cancel())
    handle: asyncio.Handle = loop.call_soon(say, "cancelled")
    await asyncio.sleep(0)
    say(handle.cancelled())


async def an_exception_does_not_cut_a_turn_short(say: Say, unit_s: float) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: say(repr(context["exception"])))

    def rest() -> None:
        say("rest of the turn")
        loop.call_soon(say, "next turn")

    loop.call_soon(loop.call_later, 0, say, "timer")
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(rest)
    await asyncio.sleep(unit_s)


async def sleeps_of_zero_take_turns(say: Say, unit_s: float) -> None:
    async def walk(name: str) -> None:
        for step in range(3):
            say(f"{name}{step}")
            await asyncio.sleep(0)

    await asyncio.gather(walk("a"), walk("b"), walk("c"))


# -------------------------------------------------------------------- waiting for time


async def sleepers_wake_in_the_order_of_their_time(say: Say, unit_s: float) -> None:
    async def sleeper(units: int) -> int:
        await asyncio.sleep(units * unit_s)
        say(units)
        return units

    say(await asyncio.gather(sleeper(3), sleeper(1), sleeper(2)))


async def timeouts_nest(say: Say, unit_s: float) -> None:
    try:
        async with asyncio.timeout(3 * unit_s) as outer:
            try:
                async with asyncio.timeout(unit_s):
                    await asyncio.sleep(9 * unit_s)
            except TimeoutError:
                say("inner")
            outer.reschedule(asyncio.get_running_loop().time() + unit_s)
            await asyncio.sleep(9 * unit_s)
    except TimeoutError:
        say(f"outer {outer.expired()}")


async def wait_for_ends_by_result_by_time_and_by_cancellation(say: Say, unit_s: float) -> None:
    async def work(units: float) -> str:
        try:
            await asyncio.sleep(units * unit_s)
        except asyncio.CancelledError:
            say("work is cancelled")
            raise
        return "result"

    say(await asyncio.wait_for(work(1), 2 * unit_s))
    with suppress(TimeoutError):
        await asyncio.wait_for(work(2), unit_s)
    with suppress(TimeoutError):
        await asyncio.wait_for(work(2), 0)
    task = asyncio.create_task(asyncio.wait_for(work(5), 9 * unit_s))
    await asyncio.sleep(unit_s)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        say("wait_for is cancelled")


async def wait_returns_at_the_first_at_a_time_and_at_the_end(say: Say, unit_s: float) -> None:
    async def work(units: int) -> int:
        await asyncio.sleep(units * unit_s)
        if units == 2:
            raise ValueError(units)
        return units

    tasks = [asyncio.create_task(work(units), name=f"w{units}") for units in (3, 1, 2)]

    def names(some: set[asyncio.Task[int]]) -> list[str]:
        return sorted(task.get_name() for task in some)

    for options in (
        {"return_when": asyncio.FIRST_COMPLETED},
        {"timeout": unit_s / 2},
        {"return_when": asyncio.FIRST_EXCEPTION},
        {},
    ):
        done, pending = await asyncio.wait(tasks, **options)
        say((names(done), names(pending)))
    say([type(task.exception()).__name__ for task in tasks])


async def as_completed_yields_in_the_order_of_completion(say: Say, unit_s: float) -> None:
    for next_one in asyncio.as_completed(
        [asyncio.sleep(units * unit_s, units) for units in (3, 1, 2)]
    ):
        say(await next_one)


async def shield_keeps_the_work_when_the_waiter_goes(say: Say, unit_s: float) -> None:
    async def work() -> None:
        await asyncio.sleep(2 * unit_s)
        say("worked")

    inner = asyncio.create_task(work())
    with suppress(TimeoutError):
        async with asyncio.timeout(unit_s):
            await asyncio.shield(inner)
    say("waiter gone")
    await inner


# -------------------------------------------------------------------- tasks


async def a_group_waits_for_all_and_cancels_the_others_when_one_fails(
    say: Say, unit_s: float
) -> None:
    async def member(name: str, units: int) -> None:
        try:
            await asyncio.sleep(units * unit_s)
            say(f"{name} done")
            if name == "b":
                raise ValueError(name)
        except asyncio.CancelledError:
            say("a member is cancelled")
            await asyncio.sleep(unit_s)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for units, name in enumerate("abcd", start=1):
                group.create_task(member(name, units))
    except* ValueError as failures:
        say([str(failure) for failure in failures.exceptions])


async def gather_returns_exceptions_or_raises_the_first(say: Say, unit_s: float) -> None:
    async def work(units: int) -> int:
        await asyncio.sleep(units * unit_s)
        if units % 2:
            raise ValueError(units)
        return units

    results = await asyncio.gather(work(2), work(1), work(3), return_exceptions=True)
    say([repr(result) for result in results])
    try:
        await asyncio.gather(work(2), work(1))
    except ValueError as failure:
        say(repr(failure))


async def a_cancelled_task_can_clean_up_and_refuse(say: Say, unit_s: float) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(9 * unit_s)
        except asyncio.CancelledError as cancelled:
            say(f"asked to stop: {cancelled}")
            await asyncio.sleep(unit_s)
        finally:
            say("finally")
        return "stayed"

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(unit_s)
    task.cancel("please")
    say(await task)
    say(task.cancelled())
    early = asyncio.create_task(stubborn())
    early.cancel()
    say(repr(await asyncio.gather(early, return_exceptions=True)))


async def uncancel_undoes_a_cancellation(say: Say, unit_s: float) -> None:
    async def work() -> int:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(9 * unit_s)
        except asyncio.CancelledError:
            say(task.cancelling())
            say(task.uncancel())
        await asyncio.sleep(unit_s)
        return task.cancelling()

    task = asyncio.create_task(work())
    await asyncio.sleep(unit_s)
    task.cancel()
    say(await task)


async def done_callbacks_run_in_order_with_their_contexts(say: Say, unit_s: float) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: say(f"1 {variable.get()}"))
    variable.set("later")
    future.add_done_callback(lambda _: say(f"2 {variable.get()}"))
    own = contextvars.Context()
    future.add_done_callback(lambda _: say(f"3 {variable.get()}"), context=own)
    results: list[Any] = []
    future.add_done_callback(results.append, context=own)
    future.set_result(None)
    say("set")
    await asyncio.sleep(0)
    say(results == [future])


async def contexts_are_copied_when_tasks_and_timers_are_made(say: Say, unit_s: float) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")
    loop = asyncio.get_running_loop()

    async def child() -> None:
        say(f"child {variable.get()}")
        variable.set("child's")
        await asyncio.sleep(unit_s)
        say(f"child {variable.get()}")

    variable.set("one")
    task = asyncio.create_task(child())

    def timer() -> None:
        say(f"timer {variable.get()}")
        variable.set("timer's")

    loop.call_later(unit_s / 2, timer)
    loop.call_soon(lambda: say(f"soon {variable.get()}"))
    other = contextvars.copy_context()
    other.run(variable.set, "other")
    loop.call_later(unit_s / 4, lambda: say(f"timer {variable.get()}"), context=other)
    elsewhere = asyncio.create_task(child(), context=other)
    variable.set("two")
    await asyncio.gather(task, elsewhere)
    say(f"parent {variable.get()}, other {other[variable]}")


async def timers_of_one_instant_keep_their_contexts(say: Say, unit_s: float) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    loop = asyncio.get_running_loop()
    when = loop.time() + unit_s
    for name in ("first", "second"):  # of three, asyncio's heap would not keep the order
        variable.set(name)
        loop.call_at(when, lambda name=name: say(f"{name} {variable.get()}"))  # type: ignore[misc]
    variable.set("main's")
    await asyncio.sleep(2 * unit_s)


# -------------------------------------------------------------------- locks and queues


async def a_lock_serves_in_order_and_survives_a_cancelled_waiter(say: Say, unit_s: float) -> None:
    lock = asyncio.Lock()

    async def user(name: str) -> None:
        async with lock:
            say(f"{name} in")
            await asyncio.sleep(unit_s)
            say(f"{name} out")

    tasks = [asyncio.create_task(user(name)) for name in "abcd"]
    await asyncio.sleep(unit_s / 2)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    say(lock.locked())


async def a_semaphore_is_fair_to_those_who_wait(say: Say, unit_s: float) -> None:
    semaphore = asyncio.Semaphore(2)

    async def user(name: str, units: float) -> None:
        await asyncio.sleep(units * unit_s)
        async with semaphore:
            say(f"{name} in")
            await asyncio.sleep(2 * unit_s)
        say(f"{name} out")

    await asyncio.gather(*(user(name, units) for units, name in enumerate("abcde")))


async def a_condition_wakes_as_many_as_it_notifies(say: Say, unit_s: float) -> None:
    condition, items = asyncio.Condition(), list[int]()

    async def consumer(name: str) -> None:
        async with condition:
            await condition.wait_for(lambda: items)
            say(f"{name} takes {items.pop(0)}")

    tasks = [asyncio.create_task(consumer(name)) for name in "abc"]
    for item in range(3):
        await asyncio.sleep(unit_s)
        async with condition:
            items.append(item)
            condition.notify(1)
    await asyncio.gather(*tasks)


async def an_event_wakes_all_who_wait(say: Say, unit_s: float) -> None:
    event = asyncio.Event()

    async def waiter(name: str) -> None:
        await event.wait()
        say(name)

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(waiter(name))
        await asyncio.sleep(unit_s)
        say("set")
        event.set()
        event.clear()


async def a_barrier_lets_all_through_at_once(say: Say, unit_s: float) -> None:
    barrier = asyncio.Barrier(3)

    async def party(name: str, units: int) -> None:
        await asyncio.sleep(units * unit_s)
        say(f"{name} waits")
        position = await barrier.wait()
        say(f"{name} passes {position}")

    await asyncio.gather(party("a", 3), party("b", 1), party("c", 2))


async def a_bounded_queue_holds_its_producer_back(say: Say, unit_s: float) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)

    async def consumer() -> None:
        while True:
            await asyncio.sleep(unit_s)
            say(f"got {await queue.get()}")
            queue.task_done()

    task = asyncio.create_task(consumer())
    for item in range(5):
        await queue.put(item)
        say(f"put {item}")
    await queue.join()
    say("joined")
    task.cancel()


async def a_priority_queue_serves_the_smallest_first(say: Say, unit_s: float) -> None:
    queue: asyncio.PriorityQueue[tuple[int, str]] = asyncio.PriorityQueue()

    async def consumer(name: str) -> None:
        for _ in range(2):
            say(f"{name} {await queue.get()}")
            await asyncio.sleep(unit_s)

    tasks = [asyncio.create_task(consumer("x")), asyncio.create_task(consumer("y"))]
    await asyncio.sleep(unit_s)
    for item in ((3, "c"), (1, "a"), (2, "b"), (0, "z")):
        queue.put_nowait(item)
    await asyncio.gather(*tasks)


# -------------------------------------------------------------------- generators


async def a_generator_that_is_closed_finishes_before_its_user_goes_on(
    say: Say, unit_s: float
) -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(9):
                yield number
                await asyncio.sleep(unit_s)
        finally:
            await asyncio.sleep(unit_s)
            say("closed")

    async with aclosing(numbers()) as stream:  # type: ignore[type-var]
        async for number in stream:
            say(number)
            if number == 2:
                break
    say("after")


async def what_is_left_is_cancelled_when_main_ends(say: Say, unit_s: float) -> None:
    async def left_over(name: str) -> None:
        try:
            await asyncio.sleep(9 * unit_s)
        finally:
            await asyncio.sleep(0)
            say(f"{name} is cleaned up")

    tasks = [asyncio.create_task(left_over("only"))]
    await asyncio.sleep(unit_s)
    say(f"main ends, {len(tasks)} is left")


PROGRAMS: list[Program] = [
    program
    for name, program in list(globals().items())
    if inspect.isfunction(program)
    and inspect.iscoroutinefunction(program)
    and not name.startswith("_")
]
