"""The pace of one answer: waiting until a number of its tokens is out, whether planned ahead or decided by an engine."""

from __future__ import annotations

import asyncio

from simulation.models.endpoint.attempt import Attempt
from simulation.models.endpoint.timing import GAP_LUCK
from simulation.models.endpoint.waiting import sleep_until

__all__ = ["Pace", "chunk_marks"]


def chunk_marks(output_tokens: int, chunk_tokens: int) -> list[int]:
    """Tokens that are out after each chunk."""
    return [*range(chunk_tokens, output_tokens, chunk_tokens), output_tokens]


class Pace:
    """Waits for tokens of one attempt."""

    def __init__(self, attempt: Attempt, loop: asyncio.AbstractEventLoop) -> None:
        self._attempt = attempt
        self._loop = loop
        self._shares: list[float] | None = None
        fault = attempt.fault
        self._slowness = fault.factor if fault is not None and fault.kind == "slow" else 1.0

    def instant_s(self, tokens: int) -> float:
        """The planned instant of a token (not for engines)."""
        attempt = self._attempt
        if tokens >= attempt.output_tokens:
            return attempt.last_s
        if tokens <= attempt.chunk_tokens:
            return attempt.first_s
        if self._shares is None:
            assert attempt.timing is not None
            chunks = -(-attempt.output_tokens // attempt.chunk_tokens)
            self._shares = attempt.timing.shares(attempt.luck[GAP_LUCK], chunks)
        share = self._shares[-(-tokens // attempt.chunk_tokens) - 1]
        return attempt.first_s + (attempt.last_s - attempt.first_s) * share

    async def reach(self, tokens: int) -> None:
        """Return when `tokens` are out."""
        attempt = self._attempt
        if attempt.sequence is None:
            await sleep_until(self._loop, self.instant_s(tokens))
            return
        assert attempt.engine is not None
        await attempt.engine.reach(attempt.sequence, tokens)
        if self._slowness > 1.0:
            elapsed_s = self._loop.time() - attempt.arrived_s
            await sleep_until(self._loop, attempt.arrived_s + elapsed_s * self._slowness)
