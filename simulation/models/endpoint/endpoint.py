"""The LLM endpoint: one behaviour for the simulation (in process) and for the mock server (over HTTP).

A call is decided on when it arrives (`admit`) and then delivered (`deliver`); `complete` does both. Decisions depend on
the arrival instant, the request and its own luck only, so a live run's arrivals replayed in virtual time meet the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from typing import Literal

from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTimeout,
    ServiceError,
    StreamBroken,
)
from reference_impl.messages import Call, Chunk, Completion, Emit, Usage
from simulation.models.endpoint.answer import Answer, compose
from simulation.models.endpoint.attempt import Attempt, AttemptRecord, EndpointStatistics
from simulation.models.endpoint.batching import BatchingEngine, EngineStatistics
from simulation.models.endpoint.faults import Fault, FaultOrder, Faults, StreamCut, raise_status
from simulation.models.endpoint.limits import AccountLimits, Flow
from simulation.models.endpoint.overload import OverloadModel
from simulation.models.endpoint.pace import Pace, chunk_marks
from simulation.models.endpoint.prompt_cache import CacheSplit, PromptCache, PromptPrefix
from simulation.models.endpoint.request import MessagesRequest, parse_messages
from simulation.models.endpoint.timing import (
    FAULT_LUCK,
    OVERLOAD_LUCK,
    ProviderTiming,
    ServiceTiming,
    Timing,
)
from simulation.models.endpoint.tokens import count_prompt, prompt_prefixes
from simulation.models.endpoint.waiting import sleep_until
from simulation.models.endpoint.wire import (
    TokenCounts,
    message_body,
    message_size,
    stream_chunks,
    stream_size,
)
from simulation.scenario.endpoint import (
    EndpointProfile,
    LimitsSpec,
    ProviderService,
    SelfHostedService,
    ServiceTimeService,
)
from simulation.scenario.prices import PriceTable, load_prices
from simulation.scenario.random_streams import uniforms

__all__ = ["LLMEndpoint"]

_HANG_S = 3600.0
# Of models that the price file does not list.
_MAX_OUTPUT_TOKENS = 128_000
_MAX_INPUT_TOKENS = 1_000_000


class _Line:
    """How the endpoint serves one model line."""

    def __init__(
        self,
        service: ProviderService | SelfHostedService | ServiceTimeService,
        limits: LimitsSpec,
        speedup: float,
    ) -> None:
        self.timing: Timing | None = None
        self.engine: BatchingEngine | None = None
        self.chunk_tokens = 1
        self.thinking_share = service.thinking_share
        self.limits = limits
        self.limited = limits != LimitsSpec(burst_s=limits.burst_s)
        if isinstance(service, ProviderService):
            self.timing = ProviderTiming(service, speedup)
            self.chunk_tokens = service.tokens_per_chunk
        elif isinstance(service, ServiceTimeService):
            self.timing = ServiceTiming(service, speedup)
        else:
            self.engine = BatchingEngine(service, speedup)


class LLMEndpoint:
    """Answers Messages calls as `profile` says; implements MessagesPort on either loop.

    Args:
        profile: the behaviour. seed: of all its luck, drawn per (request id, attempt).
        detail: `ends` plays a stream of a call without a body as its first and last token, `chunks` plays all of them;
            both end at the same instants. A call with a body is always played in full.
        prices: what the records' `cost_usd` is computed with; the shipped price file by default.
        account: whose limits and cache `complete` uses (the holder of the API key).
        observer: called once per attempt, also for refused ones.
    """

    def __init__(
        self,
        profile: EndpointProfile,
        seed: int,
        *,
        detail: Literal["ends", "chunks"] = "ends",
        prices: PriceTable | None = None,
        account: str = "",
        observer: Callable[[AttemptRecord], None] | None = None,
    ) -> None:
        self.profile = profile
        self.prices = load_prices() if prices is None else prices
        self._seed = seed
        self._detail = detail
        self._account = account
        self._observer = observer
        self._speedup = profile.speedup
        self._default_line = _Line(profile.service, profile.limits, profile.speedup)
        self._lines = {
            name: _Line(
                spec.service or profile.service, spec.limits or profile.limits, profile.speedup
            )
            for name, spec in profile.lines.items()
        }
        self._line_of: dict[str, tuple[str, _Line]] = {}
        self._limits: dict[tuple[str, str], AccountLimits] = {}
        self._overload = None if profile.overload is None else OverloadModel(profile.overload)
        self._faults = Faults(profile.faults, profile.speedup)
        self._cache = (
            PromptCache(profile.prompt_cache, profile.speedup)
            if profile.prompt_cache.enabled
            else None
        )
        self._started_s: float | None = None
        self._arrivals = 0
        self._ended = {"ok": 0, "rate_limited": 0, "overloaded": 0, "cancelled": 0, "failed": 0}
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost_usd = 0.0
        self._busy_s = 0.0

    # --- what others ask ---

    def statistics(self) -> EndpointStatistics:
        """Counts since the start."""
        ended = self._ended
        return EndpointStatistics(
            arrivals=self._arrivals,
            in_flight=self._arrivals - sum(ended.values()),
            completed=ended["ok"],
            rate_limited=ended["rate_limited"],
            overloaded=ended["overloaded"],
            failed=ended["failed"],
            cancelled=ended["cancelled"],
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost_usd=self._cost_usd,
            busy_s=self._busy_s,
        )

    def engine_statistics(self) -> dict[str, EngineStatistics]:
        """Each self-hosted engine by its model line ("" is the default's)."""
        lines = {"": self._default_line, **self._lines}
        return {n: line.engine.statistics() for n, line in lines.items() if line.engine is not None}

    def knows(self, model: str) -> bool:
        """Whether the model exists here (checked for calls with a body)."""
        return model in self.profile.models or self.prices.find(model) is not None

    def limits_of(self, account: str, model: str) -> AccountLimits | None:
        """The limits that a call of this account to this model meets; None: unlimited."""
        name, line = self._find_line(model)
        if not line.limited:
            return None
        limits = self._limits.get((account, name))
        if limits is None:
            now = asyncio.get_running_loop().time()
            limits = self._limits[account, name] = AccountLimits(line.limits, self._speedup, now)
        return limits

    # --- the port ---

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        """Answer `call` (see MessagesPort); writes `call.trace.endpoint_s`, also when it fails."""
        return await self.deliver(self.admit(call), emit)

    async def aclose(self) -> None:
        """Nothing to release."""

    # --- arrival ---

    def admit(
        self,
        call: Call,
        request: MessagesRequest | None = None,
        *,
        account: str | None = None,
        order: FaultOrder | None = None,
        batch: bool = False,
    ) -> Attempt:
        """Decide on a call that arrives now; raises what it is refused with.

        `request`: the parsed body, if the caller has it already. `batch`: outside the rate limits of Messages.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._started_s is None:
            self._started_s = now
        self._arrivals += 1
        account = self._account if account is None else account
        fault = None
        try:
            luck = uniforms(self._seed, "endpoint", call.request_id, call.attempt)
            if order is not None:
                fault = self._faults.ordered(order)
            elif self.profile.faults:
                fault = self._faults.drawn(luck[FAULT_LUCK], now - self._started_s)
            if fault is not None:
                raise_status(fault)
            attempt = self._decide(call, request, account, luck, fault, now, batch=batch)
        except ServiceError as error:
            call.trace.endpoint_s = 0.0
            self._count(error.outcome, 0.0)
            self._observe_refusal(call, account, now, error, fault)
            raise
        return attempt

    def _decide(
        self,
        call: Call,
        request: MessagesRequest | None,
        account: str,
        luck: tuple[float, ...],
        fault: Fault | None,
        now: float,
        *,
        batch: bool,
    ) -> Attempt:
        if request is None and call.body:
            request = parse_messages(call.body, beta=True)
        if request is not None:
            self._check_model(request)
        line = self._find_line(call.model)[1]
        prompt_id, prompt_tokens = self._size_up(call, request)
        if request is not None:
            self._check_length(call.model, prompt_tokens)
        wanted = self._wanted_tokens(call, prompt_id)
        answer: Answer | None = None
        if request is None:
            output_tokens = min(wanted, call.max_tokens)
            stop_reason = "max_tokens" if wanted > call.max_tokens else "end_turn"
        else:
            answer = compose(request, prompt_id, wanted, line.thinking_share)
            output_tokens, stop_reason = answer.output_tokens, answer.stop_reason
        split = self._cache_split(call, request, account, prompt_id, prompt_tokens, now)
        counts = TokenCounts(
            prompt_tokens - split.read - split.written_5m - split.written_1h,
            split.read,
            split.written_5m,
            split.written_1h,
        )
        limits = None if batch else self._pass_limits(account, call.model, line, counts, now)
        if self._overload is not None and self._overload.refuses(luck[OVERLOAD_LUCK], now):
            raise Overloaded("Overloaded")
        attempt = Attempt(
            call=call,
            account=account,
            arrived_s=now,
            first_s=math.nan,
            last_s=math.nan,
            luck=luck,
            counts=counts,
            output_tokens=output_tokens,
            stop_reason=stop_reason,
            timing=line.timing,
            chunk_tokens=line.chunk_tokens,
            answer=answer,
            fault=fault,
            limits=limits,
            batch=batch,
        )
        self._plan(attempt, line, split)
        return attempt

    def _plan(self, attempt: Attempt, line: _Line, split: CacheSplit) -> None:
        """Fix the course of an admitted call, and book what follows from it."""
        counts, now = attempt.counts, attempt.arrived_s
        if line.timing is None:
            assert line.engine is not None
            attempt.sequence = line.engine.submit(
                counts.total - counts.read, max(1, attempt.output_tokens)
            )
        else:
            first_s, last_s = line.timing.draw(
                attempt.luck, counts.total - counts.read, counts.read, attempt.output_tokens
            )
            factor = 1.0
            if attempt.fault is not None and attempt.fault.kind == "slow":
                factor = attempt.fault.factor
            attempt.first_s = now + first_s * factor
            attempt.last_s = max(attempt.first_s, now + last_s * factor)
            if self._overload is not None:
                self._overload.admitted(attempt.last_s)
            if attempt.limits is not None and attempt.limits.output_tokens is not None:
                self._book_output(attempt, attempt.limits)
        if split.to_store and self._cache is not None:
            self._cache.store(split, now if line.timing is None else attempt.first_s)

    @staticmethod
    def _book_output(attempt: Attempt, limits: AccountLimits) -> None:
        """Output leaves the bucket while it is produced, as planned."""
        assert limits.output_tokens is not None
        duration_s = attempt.last_s - attempt.first_s
        if duration_s <= 0:
            limits.output_tokens.take(attempt.output_tokens, attempt.arrived_s)
            return
        attempt.flow = Flow(attempt.first_s, attempt.last_s, attempt.output_tokens / duration_s)
        limits.output_tokens.drain(attempt.flow)

    def _find_line(self, model: str) -> tuple[str, _Line]:
        found = self._line_of.get(model)
        if found is None:
            entry = self.prices.find(model)
            name = "" if entry is None else entry.line
            found = (name, self._lines.get(name, self._default_line))
            if entry is not None or model in self.profile.models or len(self._line_of) < 1_000:
                self._line_of[model] = found
        return found

    def _check_model(self, request: MessagesRequest) -> None:
        if not self.knows(request.model):
            raise NotFound(f"model: {request.model}")
        entry = self.prices.find(request.model)
        longest = _MAX_OUTPUT_TOKENS if entry is None else entry.max_output_tokens
        if request.max_tokens > longest:
            raise InvalidRequest(
                f"max_tokens: {request.max_tokens} > {longest}, which is the maximum allowed number "
                f"of output tokens for {request.model}"
            )

    def _check_length(self, model: str, prompt_tokens: int) -> None:
        entry = self.prices.find(model)
        longest = _MAX_INPUT_TOKENS if entry is None else entry.max_input_tokens
        if prompt_tokens > longest:
            raise InvalidRequest(f"prompt is too long: {prompt_tokens} tokens > {longest} maximum")

    def _size_up(self, call: Call, request: MessagesRequest | None) -> tuple[int, int]:
        """(prompt id, input tokens): as tagged, else from the body."""
        tag = call.tag
        if tag is not None and (tag.input_tokens or request is None):
            return tag.prompt_id, tag.input_tokens
        if request is None:
            return call.request_id, call.input_tokens
        digest = hashlib.blake2b(digest_size=6)
        digest.update(repr((request.model, request.system, request.messages)).encode())
        return int.from_bytes(digest.digest(), "big"), count_prompt(request)

    def _wanted_tokens(self, call: Call, prompt_id: int) -> int:
        """Output tokens before `max_tokens` cuts: as tagged, else drawn by the prompt."""
        if call.tag is not None and call.tag.output_tokens:
            return call.tag.output_tokens
        luck = uniforms(self._seed, "answer", prompt_id)
        return max(1, round(self.profile.output_tokens.quantile(luck[0])))

    def _cache_split(
        self,
        call: Call,
        request: MessagesRequest | None,
        account: str,
        prompt_id: int,
        prompt_tokens: int,
        now: float,
    ) -> CacheSplit:
        if self._cache is None:
            return _NO_CACHE
        automatic = self.profile.prompt_cache.automatic and call.tag is not None
        marked = request is not None and b"cache_control" in call.body
        if not automatic and not marked:
            return _NO_CACHE
        scope = f"{account}\0{call.model}\0".encode()
        prefixes: list[PromptPrefix] = []
        if request is not None and marked:
            prefixes = prompt_prefixes(request, scope)
        if not prefixes and automatic:
            prefixes = [PromptPrefix(scope + b"%d" % prompt_id, prompt_tokens, mark=True)]
        if not prefixes:
            return _NO_CACHE
        if prefixes[-1].tokens > prompt_tokens:  # a tag's count wins: scale the body's to it
            share = prompt_tokens / prefixes[-1].tokens
            prefixes = [
                PromptPrefix(p.name, int(p.tokens * share), p.mark, p.long) for p in prefixes
            ]
        entry = self.prices.find(call.model)
        return self._cache.split(prefixes, 0 if entry is None else entry.min_cache_tokens, now)

    def _pass_limits(
        self, account: str, model: str, line: _Line, counts: TokenCounts, now: float
    ) -> AccountLimits | None:
        if not line.limited:
            return None
        limits = self.limits_of(account, model)
        assert limits is not None
        refusal = limits.refuse(counts.uncached + counts.written, now)
        if refusal is not None:
            raise RateLimited(
                f"This request would exceed your rate limit of {refusal.limit} for this model.",
                retry_after_s=refusal.retry_after_s,
            )
        return limits

    # --- delivery ---

    async def deliver(self, attempt: Attempt, emit: Emit | None = None) -> Completion:
        """Play an admitted call to its end."""
        loop = asyncio.get_running_loop()
        call = attempt.call
        outcome, status = "cancelled", 499
        try:
            completion = await self._play(attempt, emit if call.stream else None, loop)
            outcome, status = "ok", 200
        except ServiceError as error:
            outcome = error.outcome
            status = 200 if isinstance(error, StreamBroken) else error.status
            raise
        finally:
            now = loop.time()
            call.trace.endpoint_s = now - attempt.arrived_s
            if outcome != "ok":
                self._abandon(attempt, now)
            self._count(outcome, call.trace.endpoint_s)
            self._settle(attempt, outcome, status, call.trace.endpoint_s)
        return completion

    async def _play(
        self, attempt: Attempt, emit: Emit | None, loop: asyncio.AbstractEventLoop
    ) -> Completion:
        if attempt.fault is not None and attempt.fault.kind != "slow":
            return await self._play_fault(attempt, attempt.fault, emit, loop)
        if attempt.answer is not None:
            return await self._play_body(attempt, attempt.answer, emit, loop)
        output_tokens = attempt.output_tokens
        if attempt.sequence is not None or (emit is not None and self._detail == "chunks"):
            await self._play_virtual(attempt, emit, loop, output_tokens)
        else:
            # The hot path of virtual time: two timers for a stream, one otherwise.
            if emit is None:
                await sleep_until(loop, attempt.last_s)
            else:
                await self._play_ends(attempt, emit, loop)
        attempt.tokens_out = output_tokens
        return self._completion(attempt, streamed=emit is not None)

    async def _play_ends(
        self, attempt: Attempt, emit: Emit, loop: asyncio.AbstractEventLoop
    ) -> None:
        """A stream as two chunks; the first stands for all but the last."""
        n = attempt.output_tokens
        chunks = -(-n // attempt.chunk_tokens)
        size_bytes = stream_size(n, chunks)
        await sleep_until(loop, attempt.first_s)
        attempt.first_token_s = loop.time() - attempt.arrived_s
        if chunks > 1:
            over_s = attempt.last_s - attempt.first_s
            rest_bytes = size_bytes // chunks
            await emit(Chunk(b"", True, chunks - 1, over_s, size_bytes - rest_bytes))
            attempt.tokens_out = 1
            await sleep_until(loop, attempt.last_s)
            await emit(Chunk(size_bytes=rest_bytes))
        else:
            await sleep_until(loop, attempt.last_s)
            await emit(Chunk(size_bytes=size_bytes))

    async def _play_virtual(
        self, attempt: Attempt, emit: Emit | None, loop: asyncio.AbstractEventLoop, until: int
    ) -> None:
        """Play a call without a body through its pace, up to `until` tokens."""
        pace = Pace(attempt, self._find_line(attempt.call.model)[1].engine, loop)
        if emit is None:
            await pace.reach(until)
            return
        if self._detail == "ends":
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
        self,
        attempt: Attempt,
        answer: Answer,
        emit: Emit | None,
        loop: asyncio.AbstractEventLoop,
        until: float = math.inf,
    ) -> Completion:
        """Play a call with a body: real events at the paces of their tokens. Stops before the chunk after `until`."""
        call = attempt.call
        attempt.message_id = f"msg_{self._seed:x}_{call.request_id:x}_{call.attempt:x}"
        pace = Pace(attempt, self._find_line(call.model)[1].engine, loop)
        if emit is None:
            await pace.reach(attempt.output_tokens)
            attempt.tokens_out = attempt.output_tokens
            return self._completion(attempt, streamed=False)
        chunks = stream_chunks(
            attempt.message_id, call.model, answer, attempt.counts, attempt.chunk_tokens
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
        return self._completion(attempt, streamed=True, size_bytes=sent_bytes)

    async def _play_fault(
        self,
        attempt: Attempt,
        fault: Fault,
        emit: Emit | None,
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
            await self._play_virtual(attempt, emit, loop, half)
        else:
            await self._play_body(attempt, attempt.answer, emit, loop, half)
        if fault.kind == "drop_stream":
            raise StreamCut("the stream was cut off, on purpose")
        raise StreamBroken("Overloaded")  # over HTTP: an error event of the server's

    def _completion(self, attempt: Attempt, *, streamed: bool, size_bytes: int = 0) -> Completion:
        counts, n = attempt.counts, attempt.output_tokens
        usage = Usage(counts.uncached, n, counts.written, counts.read)
        if attempt.answer is None:
            size_bytes = (
                stream_size(n, -(-n // attempt.chunk_tokens)) if streamed else message_size(n)
            )
            return Completion(usage, attempt.stop_reason, b"", size_bytes)
        if streamed:  # as over HTTP: the bytes went through `emit`
            return Completion(usage, attempt.stop_reason, b"", size_bytes)
        tier = "batch" if attempt.batch else "standard"
        body = message_body(attempt.message_id, attempt.call.model, attempt.answer, counts, tier)
        return Completion(usage, attempt.stop_reason, body, len(body))

    # --- the books ---

    def _abandon(self, attempt: Attempt, now: float) -> None:
        """Free what an attempt held that did not come to its end."""
        if attempt.sequence is not None:
            engine = self._find_line(attempt.call.model)[1].engine
            assert engine is not None
            engine.abandon(attempt.sequence)
        elif self._overload is not None:
            self._overload.left(attempt.last_s)
        if attempt.flow is not None and attempt.limits is not None:
            assert attempt.limits.output_tokens is not None
            attempt.limits.output_tokens.stop(attempt.flow, now)

    def _count(self, outcome: str, endpoint_s: float) -> None:
        self._ended[outcome if outcome in self._ended else "failed"] += 1
        self._busy_s += endpoint_s

    def _settle(self, attempt: Attempt, outcome: str, status: int, endpoint_s: float) -> None:
        call, counts = attempt.call, attempt.counts
        if attempt.sequence is not None and attempt.limits is not None:
            bucket = attempt.limits.output_tokens
            if bucket is not None:  # an engine's course is not known ahead: booked at the end
                bucket.take(attempt.tokens_out, attempt.arrived_s + endpoint_s)
        # Nothing is billed for a connection that was dropped before the first token.
        billed = outcome == "ok" or attempt.tokens_out > 0
        cost_usd = 0.0
        if billed:
            cost_usd = self.prices.cost_usd(
                call.model,
                input_tokens=counts.uncached,
                output_tokens=attempt.tokens_out,
                cache_read_input_tokens=counts.read,
                cache_creation_input_tokens=counts.written,
                cache_creation_1h_input_tokens=counts.written_1h,
                batch=attempt.batch,
            )
            self._input_tokens += counts.total
            self._output_tokens += attempt.tokens_out
            self._cost_usd += cost_usd
        if self._observer is not None:
            self._observer(
                AttemptRecord(
                    request_id=call.request_id,
                    attempt=call.attempt,
                    prompt_id=0 if call.tag is None else call.tag.prompt_id,
                    account=attempt.account,
                    model=call.model,
                    stream=call.stream,
                    arrived_s=attempt.arrived_s,
                    endpoint_s=endpoint_s,
                    first_token_s=attempt.first_token_s,
                    drawn_first_token_s=attempt.first_s - attempt.arrived_s,
                    drawn_endpoint_s=attempt.last_s - attempt.arrived_s,
                    status=status,
                    outcome=outcome,
                    fault="" if attempt.fault is None else attempt.fault.kind,
                    input_tokens=counts.uncached,
                    cache_read_input_tokens=counts.read,
                    cache_creation_input_tokens=counts.written,
                    output_tokens=attempt.tokens_out,
                    cost_usd=cost_usd,
                )
            )

    def _observe_refusal(
        self, call: Call, account: str, now: float, error: ServiceError, fault: Fault | None
    ) -> None:
        if self._observer is not None:
            self._observer(
                AttemptRecord(
                    request_id=call.request_id,
                    attempt=call.attempt,
                    prompt_id=0 if call.tag is None else call.tag.prompt_id,
                    account=account,
                    model=call.model,
                    stream=call.stream,
                    arrived_s=now,
                    endpoint_s=0.0,
                    status=error.status,
                    outcome=error.outcome,
                    limit=error.message if error.status == 429 and fault is None else "",
                    fault="" if fault is None else fault.kind,
                )
            )


_NO_CACHE = CacheSplit()
