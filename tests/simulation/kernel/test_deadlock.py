"""A run that cannot go on ends with the list of who waits where, background tasks or not."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from simulation.kernel import Deadlock, await_event, run
from simulation.kernel.loop import SimulationLoop


async def beat_for_ever(period_s: float = 10.0) -> None:
    while True:
        await asyncio.sleep(period_s)


def test_a_run_that_cannot_go_on_says_who_waits_where() -> None:
    async def hold(lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.Event().wait()

    async def main() -> None:
        lock = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            group.create_task(hold(lock), name="holder")
            group.create_task(hold(lock))
            await asyncio.sleep(7)

    with pytest.raises(Deadlock) as raised:
        run(main())
    text = str(raised.value)
    assert "nothing is left to happen at 7 s; 3 tasks wait" in text
    here = r"test_deadlock.py:\d+ in test_a_run.*"
    assert raised.match(rf"Task-1: .*{here}main, waits in TaskGroup\.__aexit__")
    assert raised.match(rf"holder: .*{here}hold, waits in Event\.wait")
    assert raised.match(rf"Task-3: .*{here}hold, waits in Lock\.acquire")


def test_the_cleaning_up_after_a_deadlock_runs_the_finalisers() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append("main")

    with pytest.raises(Deadlock):
        run(main())
    assert cleaned == ["main"]


def test_an_infinite_timeout_does_not_hide_a_deadlock() -> None:
    async def main() -> None:
        async with asyncio.timeout_at(float("inf")):
            await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())


def test_background_tasks_do_not_hide_a_deadlock() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(beat_for_ever(), name="background:heartbeat")]
        await asyncio.Event().wait()
        tasks.clear()

    with pytest.raises(Deadlock, match=r"for 100 s, until 180 s, only background tasks have run"):
        run(main(), background_patience_s=100, max_events=100_000)


def test_tasks_of_background_tasks_are_background_tasks_too() -> None:
    async def control_loop() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(beat_for_ever())
            async with asyncio.timeout(1e9):
                await beat_for_ever(3)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(control_loop(), name="background:control")
            await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="only background tasks"):
        run(main(), background_patience_s=100, max_events=100_000)


@pytest.mark.parametrize("make", ["asyncio.create_task", "loop.create_task"])
def test_a_late_timer_of_the_foreground_is_not_a_deadlock(make: str) -> None:
    def start(coroutine: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        if make == "asyncio.create_task":
            return asyncio.create_task(coroutine, name=name)
        return asyncio.get_running_loop().create_task(coroutine, name=name)

    async def main() -> float:
        tasks = [start(beat_for_ever(), "background:heartbeat")]
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(1e5, event.set)
        await event.wait()  # a timer of the foreground is due, however late
        tasks.clear()
        return asyncio.get_running_loop().time()

    assert run(main(), background_patience_s=100, max_events=100_000) == 1e5


def test_a_sleeper_in_the_foreground_is_not_a_deadlock() -> None:
    async def main() -> str:
        tasks = [asyncio.create_task(beat_for_ever(), name="background:heartbeat")]
        await asyncio.sleep(1e5)
        tasks.clear()
        return "woke"

    assert run(main(), background_patience_s=100, max_events=100_000) == "woke"


def test_a_process_is_not_a_background_task() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulationLoop)
        tasks = [asyncio.create_task(beat_for_ever(), name="background:heartbeat")]
        await await_event(loop.env.timeout(1e5))
        tasks.clear()
        return "happened"

    assert run(main(), background_patience_s=100, max_events=100_000) == "happened"


def test_a_background_task_that_helps_the_foreground_is_not_a_deadlock() -> None:
    async def main() -> int:
        tokens = asyncio.Semaphore(0)

        async def refill() -> None:
            while True:
                await asyncio.sleep(90)
                tokens.release()

        tasks = [asyncio.create_task(refill(), name="background:refill")]
        taken = 0
        while taken < 50:
            await tokens.acquire()
            taken += 1
        tasks.clear()
        return taken

    assert run(main(), background_patience_s=100, max_events=100_000) == 50


def test_a_run_in_which_background_tasks_ended_is_a_plain_deadlock() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(5), name="background:short")
        await task
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="nothing is left to happen at 5 s"):
        run(main())
