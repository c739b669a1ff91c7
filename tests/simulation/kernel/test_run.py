"""`run`: what it returns, what it raises, and what it leaves behind."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Iterator

import pytest

from simulation.kernel import KernelError, LimitExceeded, SimulationLoop, Spinning, run


def test_run_returns_the_result_and_takes_no_real_time() -> None:
    async def main() -> float:
        await asyncio.sleep(1e6)
        return asyncio.get_running_loop().time()

    assert run(main()) == 1e6


def test_run_raises_what_main_raises() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        run(main())


def test_the_clock_does_not_move_past_until_but_reaches_it() -> None:
    assert run(asyncio.sleep(10, "done"), until=10) == "done"
    with pytest.raises(LimitExceeded, match=r"until=10 s; 1 tasks wait:\n  Task-1: .* in sleep"):
        run(asyncio.sleep(10.5), until=10)


def test_cleaning_up_may_take_longer_than_until() -> None:
    cleaned_up_at: list[float] = []

    async def main() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(5)
            cleaned_up_at.append(asyncio.get_running_loop().time())

    with pytest.raises(LimitExceeded):
        run(main(), until=10)
    assert cleaned_up_at == [15]


def test_a_run_can_be_bounded_by_events() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(LimitExceeded, match="max_events=1000"):
        run(main(), max_events=1000)


def test_a_run_can_be_bounded_by_a_clock_that_the_caller_hands_in() -> None:
    readings = iter(range(0, 100, 2))

    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(LimitExceeded, match="wall_clock_limit_s=5"):
        run(main(), wall_clock_limit_s=5, clock=lambda: next(readings))
    coroutine = main()
    with pytest.raises(ValueError, match="needs clock="):
        run(coroutine, wall_clock_limit_s=5)
    coroutine.close()


def test_spinning_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Spinning, match="more than 10000 callbacks at 0 s"):
        run(main(), max_callbacks_per_instant=10_000)


def test_a_process_that_spins_is_an_error_too() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)

        def spin() -> Iterator[object]:
            while True:
                yield loop.env.timeout(0)

        loop.process(spin())  # type: ignore[arg-type]
        await asyncio.sleep(1)

    with pytest.raises(Spinning):
        run(main(), max_callbacks_per_instant=10_000)


def test_a_task_that_ignores_its_cancellation_for_ever_is_told() -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                pass

    async def main() -> "asyncio.Task[None]":
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(1)
        return task

    with pytest.raises(LimitExceeded, match="although they were cancelled"):
        run(main(), max_callbacks_per_instant=1000)


def test_what_is_left_is_cancelled_in_the_order_of_its_making() -> None:
    cancelled: list[int] = []

    async def left_over(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(number)

    async def main() -> None:
        tasks = [asyncio.create_task(left_over(number)) for number in range(100)]
        await asyncio.sleep(1)
        del tasks

    run(main())
    assert cancelled == list(range(100))


def test_the_process_is_as_it_was_after_a_run() -> None:
    hooks, frozen = sys.get_asyncgen_hooks(), gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError):
        run(fail())
    assert sys.get_asyncgen_hooks() == hooks
    assert gc.get_freeze_count() == frozen
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    assert asyncio.run(asyncio.sleep(0, "a real loop works")) == "a real loop works"


async def fail() -> None:
    raise ZeroDivisionError


def test_nothing_keeps_a_finished_run_alive() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(asyncio.sleep(number) for number in range(10)))

    run(main())
    gc.collect()
    assert loops[0]() is None


def test_a_run_can_be_started_while_a_real_loop_runs() -> None:
    async def notebook_cell() -> tuple[float, float]:
        virtual = run(asyncio.sleep(1000, "virtual"))
        assert virtual == "virtual"
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return asyncio.get_running_loop().time(), task.get_loop().time()

    outer, own = asyncio.run(notebook_cell())
    assert own == pytest.approx(outer, abs=1)


def test_virtual_time_does_not_nest() -> None:
    async def main() -> None:
        coroutine = asyncio.sleep(1)
        try:
            run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="inside virtual time"):
        run(main())


def test_the_environment_of_a_loop_cannot_be_run_by_hand() -> None:
    loop = SimulationLoop()
    with pytest.raises(KernelError, match="loop drives"):
        loop.env.run(until=10)
    with pytest.raises(KernelError, match="loop drives"):
        loop.env.step()
    loop.close()


def test_a_closed_loop_refuses_callbacks() -> None:
    loop = SimulationLoop()
    loop.close()
    calls: list[Callable[..., object]] = [loop.call_soon, loop.call_later, loop.call_at]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call(1, print)
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()


def test_asyncio_runner_can_own_the_loop() -> None:
    with asyncio.Runner(loop_factory=SimulationLoop) as runner:
        assert runner.run(asyncio.sleep(1e5, "done")) == "done"
        assert runner.get_loop().time() == 1e5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_start_in_create_task_if_asked_for() -> None:
    started: list[str] = []

    async def child() -> None:
        started.append("child")
        await asyncio.sleep(1)

    async def main() -> None:
        task = asyncio.create_task(child())
        started.append("parent")
        await task

    run(main(), eager=True)
    assert started == ["child", "parent"]
    started.clear()
    run(main())
    assert started == ["parent", "child"]


def test_a_run_collects_young_objects_less_often_and_leaves_the_threshold_as_it_was() -> None:
    before = gc.get_threshold()

    async def main() -> int:
        return gc.get_threshold()[0]

    assert run(main()) == 20_000
    assert gc.get_threshold() == before
    gc.set_threshold(0)
    try:
        assert run(main()) == 0
    finally:
        gc.set_threshold(*before)
