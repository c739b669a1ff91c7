"""A computation that tests can watch: counts its calls, takes its time, fails when told."""

from __future__ import annotations

import asyncio


class Computing:
    """Call it as `compute_fn`: the n-th call (from 1) takes `takes_s` and returns `value` or, by default, n.

    `fails`: the errors of the first calls, None for a call that succeeds.
    """

    def __init__(
        self,
        *,
        takes_s: float = 1.0,
        value: object = None,
        fails: list[Exception | None] | None = None,
    ) -> None:
        self.takes_s = takes_s
        self.value = value
        self.fails = fails or []
        self.calls = 0
        self.running = 0
        self.most_running = 0

    async def __call__(self) -> object:
        self.calls += 1
        call = self.calls
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.takes_s)
            error = self.fails[call - 1] if call <= len(self.fails) else None
            if error is not None:
                raise error
            return call if self.value is None else self.value
        finally:
            self.running -= 1
