"""A time limit does what asyncio.timeout does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from reference_impl.time_limit import TimeLimit
from simulation.kernel import run

Work = Callable[[], Awaitable[str]]


async def under_limit(limit_s: float, work: Work) -> str:
    """As the request path uses it."""
    loop = asyncio.get_running_loop()
    limit = TimeLimit(loop, loop.time() + limit_s)
    try:
        return await work()
    except BaseException as error:
        if limit.was_the_cause() and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
        raise
    finally:
        limit.cancel()


async def under_timeout(limit_s: float, work: Work) -> str:
    async with asyncio.timeout(limit_s):
        return await work()


async def slow() -> str:
    await asyncio.sleep(2)
    return "done"


both = pytest.mark.parametrize("bounded", [under_limit, under_timeout])
Bounded = Callable[[float, Work], Awaitable[str]]


@both
def test_work_that_ends_in_time_is_left_alone(bounded: Bounded) -> None:
    async def main() -> str:
        answer = await bounded(3, slow)
        await asyncio.sleep(10)
        return answer

    assert run(main()) == "done"


@both
def test_work_that_takes_too_long_ends_at_the_limit(bounded: Bounded) -> None:
    async def main() -> tuple[float, int]:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await bounded(1, slow)
        task = asyncio.current_task()
        assert task is not None
        return loop.time(), task.cancelling()

    assert run(main()) == (1, 0)


@both
def test_a_cancellation_from_elsewhere_is_no_time_out(bounded: Bounded) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(bounded(1, slow))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@both
def test_a_cancellation_at_the_same_instant_is_not_swallowed(bounded: Bounded) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(bounded(1, slow))
        asyncio.get_running_loop().call_at(1, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


@both
def test_the_inner_of_two_limits_speaks_first_and_the_outer_still_holds(bounded: Bounded) -> None:
    async def patient() -> str:
        with pytest.raises(TimeoutError):
            await bounded(1, slow)
        return await slow()

    async def main() -> float:
        with pytest.raises(TimeoutError):
            await bounded(2.5, patient)
        return asyncio.get_running_loop().time()

    assert run(main()) == 2.5


@both
def test_an_error_in_answer_to_the_limit_leaves_no_cancellation_behind(bounded: Bounded) -> None:
    async def stubborn() -> str:
        try:
            return await slow()
        except asyncio.CancelledError:
            raise KeyError("cleaning up") from None

    async def main() -> int:
        with pytest.raises(KeyError):
            await bounded(1, stubborn)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run(main()) == 0
