import asyncio

import pytest

from simulation.kernel import Deadlock, LimitExceeded, run


def test_run_returns_the_result_and_takes_no_real_time() -> None:
    async def main() -> float:
        await asyncio.sleep(1e6)
        return asyncio.get_running_loop().time()

    assert run(main()) == 1e6


def test_a_run_that_cannot_go_on_is_a_deadlock_that_says_who_waits_where() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"Task-1: .*test_run.py:\d+ in .*wait_for_nothing"):
        run(wait_for_nothing())


def test_the_clock_does_not_move_past_until() -> None:
    with pytest.raises(LimitExceeded, match="until=10 s"):
        run(asyncio.sleep(10.5), until=10)
    assert run(asyncio.sleep(10, "done"), until=10) == "done"
