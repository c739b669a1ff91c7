"""The same program: the same order, whatever the hash seed, the process and the heap's state."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.kernel import run

PROGRAM = """
import asyncio
from simulation.kernel import run

async def member(number, said):
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        said.append(number)

async def main():
    said = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(member(number, said)) for number in range(40)]
        await asyncio.sleep(1)
        done, pending = await asyncio.wait(tasks, timeout=1)
        said.extend(task.get_name() for task in pending)
        group._abort()
    return said

print(run(main()))
"""


def cancelled_in_order(garbage: list[object]) -> list[int]:
    """The order in which a group of 100 tasks is cancelled, with the heap in a state of its own."""
    order: list[int] = []

    async def member(number: int) -> None:
        garbage.append(bytearray(number * 37 % 501))
        try:
            await asyncio.sleep(number % 3 and 100)
        except asyncio.CancelledError:
            order.append(number)
            raise

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(member(number))
                await asyncio.sleep(1)
                raise LookupError
        except* LookupError:
            pass

    run(main())
    return order


def test_a_group_cancels_its_tasks_in_the_same_order_twice_in_a_process() -> None:
    first = cancelled_in_order([])
    assert len(first) == 66
    for round_number in range(1, 4):
        # Holes of the size of tasks and coroutines, so that addresses come in another order.
        holes: list[object] = [bytearray(size % 700) for size in range(5000 * round_number)]
        del holes[:: round_number + 1]
        run(asyncio.sleep(round_number))  # an unrelated run in between
        assert cancelled_in_order(holes) == first


def test_names_of_tasks_are_counted_per_run() -> None:
    async def main() -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(1)) for _ in range(2)]
        await asyncio.gather(*tasks)
        return [task.get_name() for task in tasks]

    assert run(main()) == run(main()) == ["Task-2", "Task-3"]


def test_the_order_does_not_depend_on_the_hash_seed() -> None:
    root = Path(__file__).parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1
    assert "Task-41" in outputs.pop()


@pytest.mark.parametrize("eager", [False, True])
def test_the_same_run_twice_says_the_same(eager: bool) -> None:
    if eager and sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        said: list[tuple[float, str]] = []
        queue: asyncio.Queue[int] = asyncio.Queue(3)

        async def producer(number: int) -> None:
            for item in range(5):
                await queue.put(10 * number + item)
                await asyncio.sleep(number % 2)

        async def consumer(name: str) -> None:
            while True:
                said.append((loop.time(), f"{name} {await queue.get()}"))
                await asyncio.sleep(0.5)

        consumers = [asyncio.create_task(consumer(name)) for name in "xyz"]
        await asyncio.gather(*(producer(number) for number in range(6)))
        for task in consumers:
            task.cancel()
        return said

    assert run(main(), eager=eager) == run(main(), eager=eager)
