"""Playing an admitted attempt to its end: whole or streamed, with or without a body, or as its fault has it."""

from __future__ import annotations

import asyncio
import math
from typing import Literal

from reference_impl.errors import ConnectionFailed, RequestTimeout, StreamBroken
from reference_impl.messages import Chunk, Completion, Emit, Usage
from simulation.models.endpoint.answer import Answer
from simulation.models.endpoint.attempt import Attempt
from simulation.models.endpoint.faults import Fault, StreamCut
from simulation.models.endpoint.pace import Pace, chunk_marks
from simulation.models.endpoint.waiting import sleep_until
from simulation.models.endpoint.wire import (
    message_body,
    message_size,
    stream_chunks,
    stream_size,
)

__all__ = ["Detail", "play"]

Detail = Literal["ends", "chunks"]

_HANG_S = 3600.0


async def play(
    attempt: Attempt, emit: Emit | None, detail: Detail, loop: asyncio.AbstractEventLoop
) -> Completion:
    """Take the time of the answer, emitting its chunks; raises as the attempt's fault says.

    `detail`: see `LLMEndpoint`. Notes in the attempt what was delivered.
    """
    if attempt.fault is not None and attempt.fault.kind != "slow":
        return await _play_fault(attempt, attempt.fault, emit, detail, loop)
    if attempt.answer is not None:
        return await _play_body(attempt, attempt.answer, emit, loop)
    if attempt.sequence is not None or (emit is not None and detail == "chunks"):
        await _play_tokens(attempt, emit, detail, loop, attempt.output_tokens)
    # The hot path of virtual time: two timers for a stream, one otherwise.
    elif emit is None:
        await sleep_until(loop, attempt.last_s)
    else:
        await _play_ends(attempt, emit, loop)
    attempt.tokens_out = attempt.output_tokens
    return _completion(attempt, streamed=emit is not None)


async def _play_ends(attempt: Attempt, emit: Emit, loop: asyncio.AbstractEventLoop) -> None:
    """A stream as two chunks, of which the first stands for all but the last."""
    n = attempt.output_tokens
    chunks = -(-n // attempt.chunk_tokens)
    size_bytes = stream_size(n, chunks)
    await sleep_until(loop, attempt.first_s)
    attempt.first_token_s = loop.time() - attempt.arrived_s
    last_bytes = size_bytes // chunks
    if chunks > 1:
        over_s = attempt.last_s - attempt.first_s
        await emit(Chunk(count=chunks - 1, over_s=over_s, size_bytes=size_bytes - last_bytes))
    await sleep_until(loop, attempt.last_s)
    await emit(Chunk(size_bytes=last_bytes))


async def _play_tokens(
    attempt: Attempt,
    emit: Emit | None,
    detail: Detail,
    loop: asyncio.AbstractEventLoop,
    until: int,
) -> None:
    """Play a call without a body at its pace, up to `until` tokens."""
    pace = Pace(attempt, loop)
    if emit is None:
        await pace.reach(until)
        return
    if detail == "ends":
        marks = [1, until] if until > 1 else [until]
    else:
        marks = chunk_marks(until, attempt.chunk_tokens)
    size_bytes = stream_size(attempt.output_tokens, len(marks)) // len(marks)
    for tokens in marks:
        await pace.reach(tokens)
        attempt.tokens_out = tokens
        if math.isnan(attempt.first_token_s):
            attempt.first_token_s = loop.time() - attempt.arrived_s
        await emit(Chunk(size_bytes=size_bytes))


async def _play_body(
    attempt: Attempt,
    answer: Answer,
    emit: Emit | None,
    loop: asyncio.AbstractEventLoop,
    until: float = math.inf,
) -> Completion:
    """Play a call with a body: real events at the pace of their tokens, up to the chunk that `until` tokens reach."""
    if emit is None:
        if attempt.sequence is None:
            await sleep_until(loop, attempt.last_s)
        else:
            await Pace(attempt, loop).reach(attempt.output_tokens)
        attempt.tokens_out = attempt.output_tokens
        return _completion(attempt, streamed=False)
    pace = Pace(attempt, loop)
    chunks = stream_chunks(
        attempt.message_id, attempt.call.model, answer, attempt.counts, attempt.chunk_tokens
    )
    at, n, sent_bytes = 0, len(chunks), 0
    while at < n and chunks[at][0] <= until:
        await pace.reach(chunks[at][0])
        end = at + 1
        if attempt.sequence is None:
            # After a late wake-up, everything that is due goes out in one write.
            now = loop.time()
            while end < n and chunks[end][0] <= until and pace.instant_s(chunks[end][0]) <= now:
                end += 1
        data = chunks[at][1] if end == at + 1 else b"".join(c[1] for c in chunks[at:end])
        if at == 0:
            attempt.first_token_s = loop.time() - attempt.arrived_s
        attempt.tokens_out = chunks[end - 1][0]
        await emit(Chunk(data, size_bytes=len(data)))
        sent_bytes += len(data)
        at = end
    return _completion(attempt, streamed=True, size_bytes=sent_bytes)


async def _play_fault(
    attempt: Attempt,
    fault: Fault,
    emit: Emit | None,
    detail: Detail,
    loop: asyncio.AbstractEventLoop,
) -> Completion:
    """Faults that take their time: hang, or fail on the way."""
    if fault.kind == "timeout":
        await sleep_until(loop, attempt.arrived_s + _HANG_S)
        raise RequestTimeout("the endpoint never answered, on purpose")
    if fault.kind == "drop_connection" or emit is None:
        raise ConnectionFailed("the connection was dropped, on purpose")
    half = max(1, attempt.output_tokens // 2)
    if attempt.answer is None:
        await _play_tokens(attempt, emit, detail, loop, half)
    else:
        await _play_body(attempt, attempt.answer, emit, loop, half)
    if fault.kind == "drop_stream":
        raise StreamCut("the stream was cut off, on purpose")
    raise StreamBroken("Overloaded")  # over HTTP: an error event of the server's


def _completion(attempt: Attempt, *, streamed: bool, size_bytes: int = 0) -> Completion:
    counts, n = attempt.counts, attempt.output_tokens
    usage = Usage(counts.uncached, n, counts.written, counts.read, counts.written_1h)
    if attempt.answer is None:
        size_bytes = stream_size(n, -(-n // attempt.chunk_tokens)) if streamed else message_size(n)
        return Completion(usage, attempt.stop_reason, b"", size_bytes)
    if streamed:  # as over HTTP: the bytes went through `emit`
        return Completion(usage, attempt.stop_reason, b"", size_bytes)
    tier = "batch" if attempt.batch else "standard"
    body = message_body(attempt.message_id, attempt.call.model, attempt.answer, counts, tier)
    return Completion(usage, attempt.stop_reason, body, len(body))
