"""A stopped process in virtual time does nothing, and notices when it goes on what happened meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from simulation import kernel
from tests.faults.queues.stoppable import StoppableProcess, make_tasks_stoppable


def test_answers_and_time_outs_wait_for_the_process_and_others_do_not() -> None:
    seen: list[tuple[float, str]] = []

    def note(what: str) -> None:
        seen.append((asyncio.get_running_loop().time(), what))

    async def time_out() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.sleep(100)
        note("time-out")

    async def process() -> None:
        child = asyncio.create_task(time_out())
        await asyncio.sleep(3.0)
        note("answer")
        await child
        await asyncio.sleep(1.0)
        note("end")

    async def bystander() -> None:
        await asyncio.sleep(5.0)
        note("bystander")

    async def main() -> None:
        make_tasks_stoppable(asyncio.get_running_loop())
        stoppable = StoppableProcess()
        running = stoppable.start(process())
        other = asyncio.create_task(bystander())
        await asyncio.sleep(1.0)
        stoppable.stop()
        await asyncio.sleep(9.0)
        stoppable.go_on()
        await running
        await other

    kernel.run(main())
    assert seen[0] == (5.0, "bystander")
    assert sorted(seen[1:]) == [(10.0, "answer"), (10.0, "time-out"), (11.0, "end")]


def test_a_task_of_the_process_is_cancelled_when_it_goes_on() -> None:
    async def process() -> None:
        await asyncio.sleep(100)

    async def main() -> None:
        make_tasks_stoppable(asyncio.get_running_loop())
        stoppable = StoppableProcess()
        running = stoppable.start(process())
        await asyncio.sleep(1.0)
        stoppable.stop()
        running.cancel()
        await asyncio.sleep(5.0)
        assert not running.done()
        stoppable.go_on()
        with pytest.raises(asyncio.CancelledError):
            await running

    kernel.run(main())
