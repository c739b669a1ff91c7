"""The same program on a real loop and on the kernel: what happens, happens in the same order."""

import asyncio

import pytest

from simulation.kernel import run
from tests.simulation.kernel.programs import PROGRAMS, Program

LIVE_UNIT_S = 0.02


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_order_is_that_of_a_real_loop(program: Program) -> None:
    async def main(said: list[object], unit_s: float) -> None:
        await program(said.append, unit_s)

    live: list[object] = []
    virtual: list[object] = []
    asyncio.run(main(live, LIVE_UNIT_S))
    run(main(virtual, 1.0))
    assert virtual == live
    assert live
