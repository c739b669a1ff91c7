"""An error that nobody looked at fails the run."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from simulation.kernel import SimulationLoop, UnhandledErrors, run


async def fail(text: str = "lost") -> None:
    raise LookupError(text)


def test_an_exception_that_nobody_retrieved_fails_the_run() -> None:
    async def main() -> str:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task
        return "fine, so it seems"

    with pytest.raises(
        UnhandledErrors, match=r"never retrieved: LookupError: lost .*Task-2"
    ) as raised:
        run(main())
    assert isinstance(raised.value.__cause__, LookupError)


def test_an_exception_in_a_cycle_is_found_at_the_end() -> None:
    async def main() -> None:
        task = asyncio.create_task(fail())
        task.me = task  # type: ignore[attr-defined]
        await asyncio.sleep(1)

    gc.disable()
    try:
        with pytest.raises(UnhandledErrors, match="LookupError: lost"):
            run(main())
    finally:
        gc.enable()


def test_an_exception_that_was_retrieved_does_not() -> None:
    async def main() -> str:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        return str(task.exception())

    assert run(main()) == "lost"


def test_an_exception_in_a_callback_stops_the_run_there() -> None:
    reached: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(1, lambda: 1 / 0)
        loop.call_at(1, reached.append, 1.0)
        loop.call_at(2, reached.append, 2.0)
        await asyncio.sleep(10)

    with pytest.raises(UnhandledErrors, match="ZeroDivisionError"):
        run(main())
    assert reached == [1.0]


def test_an_exception_handler_takes_the_errors_over() -> None:
    handled: list[str] = []

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: handled.append(repr(context["exception"])))
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)
        return "done"

    assert run(main()) == "done"
    assert handled == ["ZeroDivisionError('division by zero')"]


def test_an_error_of_main_comes_first_and_tells_the_others_in_notes() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise OSError("while cancelled")

    async def main() -> None:
        task = asyncio.create_task(fails_when_cancelled())
        await asyncio.sleep(1)
        raise LookupError(f"main's, while {task.get_name()} waits")

    with pytest.raises(LookupError, match="main's") as raised:
        run(main())
    assert any("while cancelled" in note for note in raised.value.__notes__)


async def numbers(closed: list[str]) -> AsyncIterator[int]:
    try:
        for number in range(10):
            yield number
    finally:
        await asyncio.sleep(1)
        closed.append("closed")


def test_an_async_generator_left_to_the_garbage_collector_fails_the_run_and_is_closed() -> None:
    closed: list[str] = []

    async def main() -> None:
        async for _ in numbers(closed):
            break
        await asyncio.sleep(10)

    with pytest.raises(UnhandledErrors, match=r"numbers.* close it with contextlib\.aclosing"):
        run(main())
    assert closed == ["closed"]


def test_an_async_generator_in_aclosing_does_not() -> None:
    closed: list[str] = []

    async def main() -> None:
        async with aclosing(numbers(closed)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                break
        assert closed == ["closed"]

    run(main())


def test_async_generators_that_are_still_held_are_closed_oldest_first() -> None:
    closed: list[int] = []
    held: list[AsyncIterator[int]] = []

    async def generator(number: int) -> AsyncIterator[int]:
        try:
            yield number
        finally:
            await asyncio.sleep(0)
            closed.append(number)

    async def main() -> None:
        held.extend(generator(number) for number in range(50))
        for stream in held:
            await anext(stream)

    run(main())
    assert closed == list(range(50))


def test_an_error_of_the_cleaning_up_does_not_hide_the_error_of_main() -> None:
    async def cleans_up_slowly() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(10)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        task = asyncio.create_task(cleans_up_slowly())
        await asyncio.sleep(1)
        loop.call_later(5, loop.env.event().fail, OSError("in SimPy"))
        raise LookupError(f"main's, while {task.get_name()} waits")

    with pytest.raises(LookupError, match="main's") as raised:
        run(main())
    assert raised.value.__notes__ == ["and then, while the run was cleaned up: in SimPy"]


def test_two_errors_of_one_instant_are_both_told() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        loop.env.event().fail(OSError("in SimPy"))
        raise LookupError("main's")

    with pytest.raises(OSError, match="in SimPy") as raised:
        run(main())
    assert any('LookupError("main\'s")' in note for note in raised.value.__notes__)
