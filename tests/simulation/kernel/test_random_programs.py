"""Random programs, full of ties and cancellations: the kernel's order is asyncio's.

All times are multiples of a quarter second, so that many things fall on one instant. Every choice
is drawn from one generator that all workers share: were any two steps swapped, all that follows
would differ.
"""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from simulation.kernel import run
from tests.simulation.kernel.warped import run_warped

Said = list[tuple[float, str]]

PROGRAMS_TRIED = 150
WORKERS = 12
STEPS = 25


class Boom(Exception):
    """A failure that a program raises on purpose."""


class Program:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.said: Said = []
        self.lock = asyncio.Lock()
        self.slots = asyncio.Semaphore(2)
        self.queue: asyncio.Queue[int] = asyncio.Queue(2)
        self.event = asyncio.Event()
        self.condition = asyncio.Condition()
        self.workers: list[asyncio.Task[None]] = []
        self.handles: list[asyncio.Handle] = []

    def say(self, text: str) -> None:
        self.said.append((asyncio.get_running_loop().time(), text))

    def delay_s(self) -> float:
        return self.rng.choice([0, 0.25, 0.25, 0.5, 0.75, 1])

    async def main(self) -> Said:
        self.workers = [asyncio.create_task(self.work(number)) for number in range(WORKERS)]
        for outcome in await asyncio.gather(*self.workers, return_exceptions=True):
            self.say(type(outcome).__name__)
        return self.said

    async def work(self, number: int) -> None:
        for step in range(STEPS):
            name = self.rng.choice(sorted(STEPS_BY_NAME))
            self.say(f"{number}.{step} {name}")
            try:
                async with asyncio.timeout(self.rng.choice([0, 0.25, 0.5, 0.5, 1])):
                    await STEPS_BY_NAME[name](self)
            except (TimeoutError, Boom) as error:
                self.say(f"{number}.{step} {type(error).__name__}")
            except asyncio.CancelledError:
                self.say(f"{number}.{step} cancelled")
                if self.rng.random() < 0.3:
                    raise

    async def sleep(self) -> None:
        await asyncio.sleep(self.delay_s())

    async def use_the_lock(self) -> None:
        async with self.lock:
            await asyncio.sleep(self.delay_s())

    async def use_a_slot(self) -> None:
        async with self.slots:
            await asyncio.sleep(self.delay_s())

    async def put(self) -> None:
        await self.queue.put(self.rng.randrange(100))

    async def get(self) -> None:
        self.say(f"got {await self.queue.get()}")

    async def wait_for_the_event(self) -> None:
        await self.event.wait()

    async def flash_the_event(self) -> None:
        self.event.set()
        self.event.clear()

    async def wait_for_the_condition(self) -> None:
        async with self.condition:
            await self.condition.wait()

    async def notify(self) -> None:
        async with self.condition:
            self.condition.notify(self.rng.randrange(3))

    async def cancel_somebody(self) -> None:
        self.workers[self.rng.randrange(WORKERS)].cancel()

    async def make_callbacks(self) -> None:
        loop, number = asyncio.get_running_loop(), self.rng.randrange(1000)
        make: list[Callable[[], asyncio.Handle]] = [
            lambda: loop.call_soon(self.say, f"soon {number}"),
            lambda: loop.call_later(self.delay_s(), self.say, f"later {number}"),
            lambda: loop.call_at(loop.time() - self.delay_s(), self.say, f"past {number}"),
            lambda: loop.call_later(self.delay_s(), loop.call_soon, self.say, f"twice {number}"),
        ]
        self.handles.append(self.rng.choice(make)())

    async def cancel_a_callback(self) -> None:
        if self.handles:
            self.handles.pop(self.rng.randrange(len(self.handles))).cancel()

    async def wait_for_a_sleep(self) -> None:
        await asyncio.wait_for(asyncio.sleep(self.delay_s()), self.delay_s())

    async def shield_a_sleep(self) -> None:
        await asyncio.shield(asyncio.sleep(self.delay_s()))

    async def group(self) -> None:
        async def member(number: int) -> None:
            await asyncio.sleep(self.delay_s())
            self.say(f"member {number}")
            if self.rng.random() < 0.2:
                raise Boom

        with suppress(BaseExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(member(number))

    async def wait_for_some(self) -> None:
        tasks = [asyncio.create_task(asyncio.sleep(self.delay_s())) for _ in range(3)]
        done, pending = await asyncio.wait(
            tasks, timeout=self.delay_s(), return_when=asyncio.FIRST_COMPLETED
        )
        self.say(f"{len(done)} done")
        for task in pending:
            task.cancel()


STEPS_BY_NAME = {
    name: step
    for name, step in vars(Program).items()
    if inspect.iscoroutinefunction(step) and name not in ("main", "work")
}


@pytest.mark.parametrize("block", range(5))
def test_a_random_program_does_the_same_as_on_asyncios_own_loop(block: int) -> None:
    for seed in range(block, PROGRAMS_TRIED, 5):

        async def main(seed: int = seed) -> Said:
            return await Program(seed).main()

        virtual, reference = run(main()), run_warped(main())
        assert len(reference) > WORKERS * STEPS / 4
        assert virtual == reference, f"seed {seed}"
