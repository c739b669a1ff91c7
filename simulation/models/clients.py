"""The clients of a run: they send every request of a compiled workload when it is due, and keep its record.

The counterpart of the live injector: open loop from the intended instants; a later turn of a session follows the answer
to the one before it. Arrivals are pulled from the columns as they come due, so nothing is held for requests to come.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from reference_impl.compute import NO_WAIT
from reference_impl.errors import ServiceError
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Chunk, Completion, RequestTag
from reference_impl.telemetry import Outcome, RequestRecord, RequestTrace
from simulation.models.cpu import VirtualCpu
from simulation.scenario.prompts import request_sizes_bytes, virtual_key
from simulation.scenario.workload import NONE, CompiledWorkload

__all__ = ["Clients"]

BLOCK_ROWS: Final = 4096


class _Row(NamedTuple):
    """One request, out of the columns."""

    request_id: int
    intended_s: float
    session_id: int
    turn: int
    prompt_id: int
    input_tokens: int
    output_tokens: int
    max_tokens: int
    stream: bool
    model: int
    tenant: int
    patience_s: float
    next_row: int
    size_bytes: int


class Clients:
    """Plays `workload` against `port`.

    Args:
        workload: what is sent, and when.
        port: the system's front door.
        origin_s: the instant on the loop's clock from which the workload's instants count.
        horizon_s: no request is sent from here on.
        on_record: told every request when it has ended.
        cpu: the injector's own, or None if it costs nothing.
    """

    def __init__(
        self,
        workload: CompiledWorkload,
        port: MessagesPort,
        *,
        origin_s: float,
        horizon_s: float,
        on_record: Callable[[RequestRecord], None],
        cpu: VirtualCpu | None = None,
    ) -> None:
        self._workload = workload
        self._port = port
        self._origin_s = origin_s
        self._horizon_s = horizon_s
        self._on_record = on_record
        self._cpu = cpu
        self._loop = asyncio.get_running_loop()
        self._arrivals = _rows(workload, workload.open_rows)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._waiting_turns = 0
        self._all_sent = False
        self._closing = False
        self._done = self._loop.create_future()
        self.sent = 0
        self.ended = 0

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    async def play(self, drain_s: float) -> None:
        """Send everything, wait for the answers, at most `drain_s` after the horizon; the rest ends `unfinished`."""
        self._schedule_next()
        limit_s = self._origin_s + self._horizon_s + drain_s
        try:
            async with asyncio.timeout_at(limit_s):
                await self._done
        except TimeoutError:
            self._closing = True
            for task in list(self._tasks.values()):
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _schedule_next(self) -> None:
        row = next(self._arrivals, None)
        if row is None or row.intended_s >= self._horizon_s:
            self._all_sent = True
            self._check_done()
        else:
            self._loop.call_at(self._origin_s + row.intended_s, self._arrive, row)

    def _arrive(self, row: _Row) -> None:
        self._send(row)
        self._schedule_next()

    def _send(self, row: _Row) -> None:
        self.sent += 1
        self._tasks[row.request_id] = self._loop.create_task(self._request(row))

    def _send_turn(self, row: _Row) -> None:
        self._waiting_turns -= 1
        self._send(row)

    def _check_done(self) -> None:
        if self._all_sent and not self._tasks and not self._waiting_turns and not self._done.done():
            self._done.set_result(None)

    async def _request(self, row: _Row) -> None:
        loop = self._loop
        workload = self._workload
        call = _call(workload, row)
        answer = _Answer(loop)
        outcome: Outcome = "unfinished"
        status = 0
        completion: Completion | None = None
        if self._cpu is not None:
            await self._cpu.use("client")
        sent_s = loop.time()
        impatience = None
        if row.patience_s != math.inf:
            task = self._tasks[row.request_id]
            impatience = loop.call_at(sent_s + row.patience_s, answer.leave, task)
        try:
            completion = await self._port.complete(call, answer if row.stream else None)
            outcome, status = "ok", 200
        except ServiceError as error:
            outcome, status = error.outcome, error.status
        except asyncio.CancelledError:
            if not answer.left:
                if not self._closing:
                    raise
            else:
                outcome = "cancelled"
        finally:
            if impatience is not None:
                impatience.cancel()
            del self._tasks[row.request_id]
            self._record(row, call, answer, sent_s, outcome, status, completion)
            self._follow_up(row)

    def _record(
        self,
        row: _Row,
        call: Call,
        answer: _Answer,
        sent_s: float,
        outcome: Outcome,
        status: int,
        completion: Completion | None,
    ) -> None:
        origin_s = self._origin_s
        done_s = self._loop.time()
        first_token_s = answer.first_token_s
        if completion is not None and math.isnan(first_token_s):
            first_token_s = done_s
        usage = completion.usage if completion is not None else None
        self.ended += 1
        self._on_record(
            RequestRecord.assemble(
                call.trace,
                request_id=row.request_id,
                session_id=row.session_id,
                turn=row.turn,
                tenant=call.tenant,
                model=call.model,
                intended_s=row.intended_s,
                # origin + intended - origin may fall short of intended by a rounding error
                sent_s=max(row.intended_s, sent_s - origin_s),
                first_token_s=first_token_s - origin_s,
                done_s=done_s - origin_s,
                outcome=outcome,
                status=status,
                input_tokens=row.input_tokens,
                cached_tokens=usage.cache_read_input_tokens if usage is not None else 0,
                output_tokens=usage.output_tokens if usage is not None else 0,
            )
        )

    def _follow_up(self, row: _Row) -> None:
        """Schedule the turn that waited for this one."""
        if row.next_row != NONE and not self._closing:
            now_s = self._loop.time() - self._origin_s
            due_s = now_s + float(self._workload.think_s[row.next_row])
            if due_s < self._horizon_s:
                turn = next(_rows(self._workload, [row.next_row]))._replace(intended_s=due_s)
                self._waiting_turns += 1
                self._loop.call_at(self._origin_s + due_s, self._send_turn, turn)
        self._check_done()


class _Answer:
    """What a client sees of its answer; `emit` of its call."""

    __slots__ = ("_loop", "first_token_s", "left")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.first_token_s = math.nan
        self.left = False

    def __call__(self, chunk: Chunk) -> Awaitable[None]:
        if chunk.content and math.isnan(self.first_token_s):
            self.first_token_s = self._loop.time()
        return NO_WAIT

    def leave(self, task: asyncio.Task[None]) -> None:
        """The client's patience has ended: it leaves, unless something has come."""
        if math.isnan(self.first_token_s):
            self.left = True
            task.cancel()


def _call(workload: CompiledWorkload, row: _Row) -> Call:
    return Call(
        request_id=row.request_id,
        model=workload.models[row.model],
        max_tokens=row.max_tokens,
        stream=row.stream,
        trace=RequestTrace(),
        tenant=workload.tenants[row.tenant],
        input_tokens=row.input_tokens,
        size_bytes=row.size_bytes,
        tag=RequestTag(
            request_id=row.request_id,
            prompt_id=row.prompt_id,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
        ),
        key=virtual_key(workload, row.request_id),
    )


def _rows(workload: CompiledWorkload, rows: npt.ArrayLike) -> Iterator[_Row]:
    """The requests of `rows` one by one, converted a block at a time."""
    indices = np.asarray(rows, dtype=np.int64)
    for start in range(0, len(indices), BLOCK_ROWS):
        block = indices[start : start + BLOCK_ROWS]
        columns = (
            workload.intended_s,
            workload.session_id,
            workload.turn,
            workload.prompt_id,
            workload.input_tokens,
            workload.output_tokens,
            workload.max_tokens,
            workload.stream,
            workload.model,
            workload.tenant,
            workload.patience_s,
            workload.next_row,
        )
        sizes_bytes = request_sizes_bytes(workload, block).tolist()
        cells = (c[block].tolist() for c in columns)
        yield from map(_Row._make, zip(block.tolist(), *cells, sizes_bytes, strict=True))
