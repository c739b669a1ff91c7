"""Deciding on a call when it arrives: its sizes, its place in the prompt cache, limits, overload, and its course.

Decisions depend on the arrival instant, the request and its own luck only, never on when a wake-up happened: a live run's
arrivals replayed in virtual time meet the same.
"""

from __future__ import annotations

import math

from reference_impl.errors import Overloaded, RateLimited
from reference_impl.messages import Call
from simulation.models.endpoint.answer import Answer, compose
from simulation.models.endpoint.attempt import Attempt
from simulation.models.endpoint.faults import Fault
from simulation.models.endpoint.limits import AccountLimits, Flow
from simulation.models.endpoint.lines import Line, Lines
from simulation.models.endpoint.overload import OverloadModel
from simulation.models.endpoint.prompt_cache import CacheSplit, PromptCache, PromptPrefix
from simulation.models.endpoint.request import parse_messages
from simulation.models.endpoint.request_types import MessagesRequest
from simulation.models.endpoint.sizing import check_sizes, prompt_of, wanted_tokens
from simulation.models.endpoint.timing import OVERLOAD_LUCK
from simulation.models.endpoint.tokens import prompt_prefixes
from simulation.models.endpoint.wire import TokenCounts
from simulation.scenario.endpoint import EndpointProfile

__all__ = ["Admission"]

_NO_CACHE = CacheSplit()


class Admission:
    """Decides on calls, and keeps what later calls meet: limits, overload, prompt cache."""

    def __init__(self, profile: EndpointProfile, seed: int, lines: Lines) -> None:
        self._profile = profile
        self._seed = seed
        self._lines = lines
        self._limits: dict[tuple[str, str], AccountLimits] = {}
        self._overload = None if profile.overload is None else OverloadModel(profile.overload)
        self._cache = (
            PromptCache(profile.prompt_cache, profile.speedup)
            if profile.prompt_cache.enabled
            else None
        )

    def limits_of(self, account: str, model: str, now: float) -> AccountLimits | None:
        """The limits that a call of this account to this model meets; None: unlimited.

        `now` is when their buckets are first seen full.
        """
        line = self._lines.find(model)
        if not line.limited:
            return None
        limits = self._limits.get((account, line.name))
        if limits is None:
            limits = AccountLimits(line.limits, self._profile.speedup, now)
            self._limits[account, line.name] = limits
        return limits

    def decide(
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
        """The attempt, its course fixed; raises RateLimited, Overloaded, NotFound or InvalidRequest."""
        if request is None and call.body:
            # Who calls in process stands behind the edge that has checked versions and unknown fields.
            request = parse_messages(call.body, version="2023-06-01", beta=True)
        line = self._lines.find(call.model)
        prompt_id, prompt_tokens = prompt_of(call, request)
        wanted = wanted_tokens(call, prompt_id, self._profile.output_tokens, self._seed)
        answer: Answer | None = None
        if request is None:
            output_tokens = min(wanted, call.max_tokens)
            stop_reason = "max_tokens" if wanted > call.max_tokens else "end_turn"
        else:
            check_sizes(request, prompt_tokens, self._lines)
            answer = compose(request, prompt_id, wanted, line.thinking_share)
            output_tokens, stop_reason = answer.output_tokens, answer.stop_reason
        split = self._cache_split(call, request, account, prompt_id, prompt_tokens, now)
        counts = TokenCounts(
            prompt_tokens - split.read - split.written_5m - split.written_1h,
            split.read,
            split.written_5m,
            split.written_1h,
        )
        if self._overload is not None and self._overload.refuses(luck[OVERLOAD_LUCK], now):
            raise Overloaded("Overloaded")
        limits = None if batch else self._pass_limits(account, call.model, counts, now)
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
            engine=line.engine,
            chunk_tokens=line.chunk_tokens,
            answer=answer,
            fault=fault,
            limits=limits,
            batch=batch,
        )
        self._plan(attempt, split, line)
        return attempt

    def abandon(self, attempt: Attempt, now: float) -> None:
        """Free what an attempt held that did not come to its end."""
        if attempt.sequence is not None:
            assert attempt.engine is not None
            attempt.engine.abandon(attempt.sequence)
        else:
            if self._overload is not None:
                self._overload.left(attempt.last_s)
            if attempt.answer is None:
                attempt.tokens_out = max(attempt.tokens_out, attempt.planned_tokens(now))
        if attempt.flow is not None and attempt.limits is not None:
            assert attempt.limits.output_tokens is not None
            attempt.limits.output_tokens.stop(attempt.flow, now)

    def settle(self, attempt: Attempt, now: float) -> None:
        """Charge the output of an engine, whose course is not known ahead."""
        if attempt.sequence is not None and attempt.limits is not None:
            bucket = attempt.limits.output_tokens
            if bucket is not None:
                bucket.redeem(attempt.output_tokens, attempt.tokens_out, now)

    def _plan(self, attempt: Attempt, split: CacheSplit, line: Line) -> None:
        """Fix the course of an admitted call, and book what follows from it."""
        counts, now = attempt.counts, attempt.arrived_s
        if line.timing is None:
            assert line.engine is not None
            attempt.sequence = line.engine.submit(
                counts.total - counts.read, max(1, attempt.output_tokens)
            )
            readable_s = now
            if attempt.limits is not None and attempt.limits.output_tokens is not None:
                attempt.limits.output_tokens.claim(attempt.output_tokens, now)
        else:
            first_s, last_s = line.timing.draw(
                attempt.luck, counts.total - counts.read, counts.read, attempt.output_tokens
            )
            if attempt.fault is not None and attempt.fault.kind == "slow":
                first_s, last_s = first_s * attempt.fault.factor, last_s * attempt.fault.factor
            attempt.first_s = readable_s = now + first_s
            attempt.last_s = now + max(first_s, last_s)
            if self._overload is not None:
                self._overload.admitted(attempt.last_s)
            self._book_output(attempt)
        if split.to_store and self._cache is not None:
            self._cache.store(split, readable_s)

    @staticmethod
    def _book_output(attempt: Attempt) -> None:
        """Output leaves the bucket while it is produced, as planned."""
        bucket = None if attempt.limits is None else attempt.limits.output_tokens
        if bucket is None:
            return
        duration_s = attempt.last_s - attempt.first_s
        if duration_s <= 0:
            bucket.take(attempt.output_tokens, attempt.arrived_s)
            return
        attempt.flow = Flow(attempt.first_s, attempt.last_s, attempt.output_tokens / duration_s)
        bucket.drain(attempt.flow, attempt.arrived_s)

    def _cache_split(
        self,
        call: Call,
        request: MessagesRequest | None,
        account: str,
        prompt_id: int,
        prompt_tokens: int,
        now: float,
    ) -> CacheSplit:
        automatic = self._profile.prompt_cache.automatic and call.tag is not None
        marked = request is not None and b"cache_control" in call.body
        if self._cache is None or not (automatic or marked):
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
        entry = self._lines.price(call.model)
        return self._cache.split(prefixes, 0 if entry is None else entry.min_cache_tokens, now)

    def _pass_limits(
        self, account: str, model: str, counts: TokenCounts, now: float
    ) -> AccountLimits | None:
        limits = self.limits_of(account, model, now)
        if limits is None:
            return None
        refusal = limits.refuse(counts.uncached + counts.written, now)
        if refusal is not None:
            raise RateLimited(
                f"This request would exceed your rate limit of {refusal.limit} for this model.",
                retry_after_s=refusal.retry_after_s,
            )
        return limits
