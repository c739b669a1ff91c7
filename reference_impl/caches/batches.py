"""Questions that come while one is being answered travel together.

One question alone goes straight through, in its own task. Those that arrive before its answer wait for each other and become
one batch when it is back: the busier the process, the larger the batch, and nobody waits for a timer (group commit).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["BatchAbandoned", "Batches"]

Q = TypeVar("Q")
A = TypeVar("A")


class BatchAbandoned(ConnectionError):
    """The batch was cancelled with its owner."""


class Batches(Generic[Q, A]):
    """Answers by `answer_all(questions)`, as many and in the same order, at most `max_batch` at once, one call at a time.

    Its errors reach all whose questions it had. A batch takes `limit_s` at most, so that a peer that went silent does not
    hold up the questions that come later; a lone question is bounded by whoever asks it.
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        max_batch: int,
        limit_s: float,
    ) -> None:
        self._answer_all = answer_all
        self._max_batch = max_batch
        self._limit_s = limit_s
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        if self._busy:
            future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
            self._waiting.append((question, future))
            return await future
        self._busy = True
        try:
            return (await self._answer_all([question]))[0]
        finally:
            if self._waiting:
                self._task = asyncio.create_task(self._work(), name="background:cache-batches")
            else:
                self._busy = False

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), self._max_batch)
                await self._answer_batch([self._waiting.popleft() for _ in range(size)])
        finally:
            self._busy = False

    async def _answer_batch(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        batch = [(question, future) for question, future in batch if not future.done()]
        if not batch:
            return
        try:
            async with asyncio.timeout(self._limit_s):
                answers = await self._answer_all([question for question, _ in batch])
        except BaseException as error:
            expected = isinstance(error, Exception)
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if expected else BatchAbandoned("closed"))
            if not expected:
                raise
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
