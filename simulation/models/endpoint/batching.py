"""A self-hosted engine with continuous batching, step by step where somebody watches, in strides where nobody does.

Between two changes of the batch all decode steps are alike, so the engine sleeps to the next milestone (a token that
somebody waits for, a completion, a full KV cache) and one timer covers many steps. An arrival takes effect at the next
step boundary, as in a real scheduler. The model and its limits: `SelfHostedService`.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from reference_impl.errors import InvalidRequest, Overloaded
from simulation.scenario.endpoint import SelfHostedService

__all__ = ["BatchingEngine", "EngineStatistics", "Sequence"]


class EngineStatistics(msgspec.Struct, frozen=True):
    """What the engine holds now, and what it has done."""

    running: int
    waiting: int
    kv_tokens: int
    steps: int
    preemptions: int


class Sequence:
    """One request in the engine."""

    __slots__ = ("_milestone", "_waiter", "done_tokens", "output_tokens", "prompt_tokens")

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.done_tokens = 0
        self._milestone = output_tokens
        self._waiter: asyncio.Future[None] | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens that the sequence holds in the cache while it runs."""
        return self.prompt_tokens + self.done_tokens

    def steps_to_milestone(self) -> int:
        """Steps until a token that somebody waits for; completions always count."""
        target = self._milestone if self._milestone > self.done_tokens else self.output_tokens
        return target - self.done_tokens

    def advance(self, tokens: int) -> None:
        """Generate `tokens`, and tell whoever waits for one of them."""
        self.done_tokens += tokens
        waiter = self._waiter
        if waiter is not None and self.done_tokens >= self._milestone and not waiter.done():
            waiter.set_result(None)

    def expect(self, tokens: int) -> asyncio.Future[None] | None:
        """A future that is done when `tokens` are out; None if they are."""
        self._milestone = min(tokens, self.output_tokens)
        if self.done_tokens >= self._milestone:
            return None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter


class BatchingEngine:
    """Runs sequences in one batch: a step gives each of them a token; first come, first served."""

    def __init__(self, service: SelfHostedService, speedup: float) -> None:
        self._service = service
        self._speedup = speedup
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._kv_tokens = 0
        self._steps = 0
        self._preemptions = 0
        # The stride in progress: when it began, how long a step takes, how many steps; None while idle.
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = 0.0
        self._step_s = 0.0
        self._stride = 0
        self._prefilling = False

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            len(self._running),
            len(self._waiting),
            self._kv_tokens,
            self._steps,
            self._preemptions,
        )

    def submit(self, prompt_tokens: int, output_tokens: int) -> Sequence:
        """Queue a request. Raises Overloaded when the queue is full, InvalidRequest when it can never fit."""
        if prompt_tokens + output_tokens > self._service.kv_cache_tokens:
            raise InvalidRequest(
                f"prompt is too long: {prompt_tokens} + {output_tokens} tokens > "
                f"{self._service.kv_cache_tokens} of the KV cache"
            )
        if len(self._waiting) >= self._service.queue_limit and not self._has_room(prompt_tokens):
            raise Overloaded("the engine's queue is full")
        sequence = Sequence(prompt_tokens, output_tokens)
        self._waiting.append(sequence)
        self._interrupt()
        return sequence

    async def reach(self, sequence: Sequence, tokens: int) -> None:
        """Return when `tokens` of the sequence are out."""
        self._settle()
        waiter = sequence.expect(tokens)
        if waiter is not None:
            self._interrupt()
            await waiter

    def abandon(self, sequence: Sequence) -> None:
        """Take a sequence out, at the next step boundary as far as the others notice; free what it holds."""
        if sequence in self._running:
            self._settle()
            if sequence in self._running:
                self._running.remove(sequence)
                self._kv_tokens -= sequence.kv_tokens
            self._interrupt()
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def _has_room(self, prompt_tokens: int) -> bool:
        return (
            not self._waiting
            and len(self._running) < self._service.max_num_seqs
            and self._kv_tokens + prompt_tokens < self._service.kv_cache_tokens
        )

    def _steps_done(self, now: float) -> int:
        """Whole steps of the stride that are over; a boundary that falls on `now` has been reached."""
        return min(self._stride, int((now - self._began_s) / self._step_s + 1e-9))

    def _settle(self) -> None:
        """Account for the decode steps of the running stride that are over."""
        if self._timer is None or self._prefilling:
            return
        done = self._steps_done(asyncio.get_running_loop().time())
        if done > 0:
            self._began_s += done * self._step_s
            self._stride -= done
            self._decode(done)

    def _interrupt(self) -> None:
        """Something changed: end the stride at the next step boundary."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._began_s = loop.time()
            self._plan(loop)
            return
        if self._prefilling or self._stride <= 1:
            return
        now = loop.time()
        next_boundary = min(self._stride, self._steps_done(now) + 1)
        if next_boundary < self._stride:
            self._timer.cancel()
            self._stride = next_boundary
            self._timer = loop.call_at(self._began_s + next_boundary * self._step_s, self._end)

    def _end(self) -> None:
        """A stride is over: hand out its tokens, then plan the next one from its end."""
        self._timer = None
        self._began_s += self._stride * self._step_s
        if self._prefilling:
            self._prefilling = False
            self._decode(1)
        else:
            self._decode(self._stride)
        self._plan(asyncio.get_running_loop())

    def _decode(self, tokens: int) -> None:
        self._steps += tokens
        finished = []
        for sequence in self._running:
            sequence.advance(tokens)
            self._kv_tokens += tokens
            if sequence.done_tokens >= sequence.output_tokens:
                finished.append(sequence)
        for sequence in finished:
            self._running.remove(sequence)
            self._kv_tokens -= sequence.kv_tokens

    def _admit(self) -> int:
        """Move what fits from the queue into the batch; tokens to prefill."""
        service = self._service
        prefill = 0
        while self._waiting and len(self._running) < service.max_num_seqs:
            needed = self._waiting[0].kv_tokens
            # Room for the next token of every sequence, or the newcomer would be preempted at once.
            if self._kv_tokens + needed + len(self._running) + 1 > service.kv_cache_tokens:
                break
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            self._kv_tokens += needed
            prefill += needed
        return prefill

    def _preempt_for_next_step(self) -> None:
        while (
            len(self._running) > 1
            and self._kv_tokens + len(self._running) > self._service.kv_cache_tokens
        ):
            last = self._running.pop()
            self._kv_tokens -= last.kv_tokens
            self._waiting.appendleft(last)
            self._preemptions += 1

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next stride at `_began_s`."""
        service = self._service
        self._preempt_for_next_step()
        prefill = self._admit()
        n = len(self._running)
        if n == 0:
            return
        step_s = service.decode_base_s + service.decode_per_sequence_s * n
        if prefill:
            # One iteration carries the new prompts and everybody's next token, and takes that much longer.
            self._prefilling = True
            self._stride = 1
            self._step_s = (step_s + prefill / service.prefill_tokens_per_s) / self._speedup
        else:
            self._step_s = step_s / self._speedup
            free = service.kv_cache_tokens - self._kv_tokens
            to_full = max(1, free // n)
            self._stride = min(to_full, min(s.steps_to_milestone() for s in self._running))
        self._timer = loop.call_at(self._began_s + self._stride * self._step_s, self._end)
