"""Rate limits as a provider enforces them: token buckets that refill continuously, per account and model class.

Decisions depend on arrival instants and planned times only, never on when a wake-up really happened: replaying the
arrivals of a live run gives the same sequence of decisions.
"""

from __future__ import annotations

import heapq
import math

import msgspec

from simulation.scenario.endpoint import AccelerationSpec, LimitsSpec

__all__ = ["AccountLimits", "BucketState", "Flow", "Refusal", "TokenBucket"]

_EPSILON = 1e-9


class BucketState(msgspec.Struct, frozen=True):
    """One limit as response headers show it: allowance per minute, what is left of it, seconds to a full bucket."""

    limit: float
    remaining: float
    reset_s: float


class Refusal(msgspec.Struct, frozen=True):
    """A limit said no: which, and when to come back."""

    limit: str
    retry_after_s: float


class Flow(msgspec.Struct, frozen=True):
    """Tokens that are taken evenly at `rate_per_s` from one instant to another."""

    begins_s: float
    ends_s: float
    rate_per_s: float

    def tokens(self, since_s: float) -> float:
        """What flows from `since_s`, an instant of the flow, to its end."""
        return (self.ends_s - since_s) * self.rate_per_s


class TokenBucket:
    """A bucket that refills at a constant rate and may go into debt.

    A request is admitted when the bucket holds its cost, or is full (one larger than the bucket could never pass
    otherwise). Output is taken while it is produced: `drain` schedules a linear outflow. What admitted answers have yet
    to produce counts as available to newcomers, but not as full: the bucket overflows only by what nobody has a claim
    to. Otherwise a bucket smaller than the time to the first token would lose its refill while the answers that it
    admitted are on their way, and pass less than its limit however much is offered.
    """

    def __init__(self, per_minute: float, burst_s: float, now: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60.0
        self._capacity = max(1.0, self._rate * burst_s)
        self._unclaimed = (
            self._capacity
        )  # the level without what is claimed; negative: claimed ahead of the refill
        self._claimed = 0.0  # admitted, and yet to flow out
        self._updated_s = now
        self._outflow = 0.0
        self._changes: list[tuple[float, float]] = []  # (instant, change of the outflow), a heap

    @property
    def _level(self) -> float:
        return self._unclaimed + self._claimed

    def _advance(self, now: float) -> None:
        changes = self._changes
        while changes and changes[0][0] <= now:
            instant, change = heapq.heappop(changes)
            self._flow_until(instant)
            # Nothing scheduled means nothing flows: rounding errors end here.
            self._outflow = self._outflow + change if changes else 0.0
        self._flow_until(now)

    def _flow_until(self, instant: float) -> None:
        elapsed = instant - self._updated_s
        if elapsed > 0:
            self._unclaimed = min(self._unclaimed + self._rate * elapsed, self._capacity)
            self._claimed -= self._outflow * elapsed
            self._updated_s = instant

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds until `cost` is surely admitted if nobody else comes; 0.0: now."""
        self._advance(now)
        wanted = min(cost, self._capacity)
        if wanted - self._level <= _EPSILON * self._capacity:
            return 0.0
        # Claims only flow out: what is unclaimed by then is there.
        return (wanted - self._unclaimed) / self._rate

    def take(self, cost: float, now: float) -> None:
        """Take `cost`, into debt if need be; a negative cost is given back."""
        self._advance(now)
        self._unclaimed = min(self._unclaimed - cost, self._capacity)

    def claim(self, tokens: float, now: float) -> None:
        """Admit an answer of `tokens` whose course is not known; `redeem` ends the claim."""
        self._advance(now)
        self._unclaimed -= tokens
        self._claimed += tokens

    def redeem(self, tokens: float, produced: float, now: float) -> None:
        """End a claim of `tokens`, of which `produced` were taken."""
        self._advance(now)
        self._claimed -= tokens
        self._unclaimed = min(self._unclaimed + tokens - produced, self._capacity)

    def drain(self, flow: Flow, now: float) -> None:
        """Let `flow` out, which begins now or later."""
        self.claim(flow.tokens(flow.begins_s), now)
        heapq.heappush(self._changes, (flow.begins_s, flow.rate_per_s))
        heapq.heappush(self._changes, (flow.ends_s, -flow.rate_per_s))

    def stop(self, flow: Flow, now: float) -> None:
        """End `flow` early: what has not flowed out is claimed no more."""
        if now >= flow.ends_s:
            return
        stopped_s = max(now, flow.begins_s)
        self.redeem(flow.tokens(stopped_s), 0.0, now)
        heapq.heappush(self._changes, (stopped_s, -flow.rate_per_s))
        heapq.heappush(self._changes, (flow.ends_s, flow.rate_per_s))

    def state(self, now: float) -> BucketState:
        """The bucket as headers show it; what is left is scaled from the burst to the minute's allowance."""
        self._advance(now)
        left = min(max(0.0, self._level) / self._capacity, 1.0)
        return BucketState(
            self.per_minute,
            self.per_minute * left,
            (self._capacity - self._unclaimed) / self._rate,
        )


class _Acceleration:
    """A bucket of requests whose rate follows the load: `growth` times the exponentially smoothed past rate."""

    def __init__(self, spec: AccelerationSpec, speedup: float, now: float) -> None:
        self._growth = spec.growth
        self._window_s = spec.window_s / speedup
        self._floor_per_s = spec.floor_per_min * speedup / 60.0
        self._smoothed_per_s = 0.0
        self._allowed_per_s = self._floor_per_s
        self._level = 1.0
        self._updated_s = now

    def wait_s(self, now: float) -> float:
        elapsed = now - self._updated_s
        self._smoothed_per_s *= math.exp(-elapsed / self._window_s)
        self._allowed_per_s = max(self._floor_per_s, self._growth * self._smoothed_per_s)
        capacity = max(1.0, self._allowed_per_s)
        self._level = min(capacity, self._level + self._allowed_per_s * elapsed)
        self._updated_s = now
        return 0.0 if self._level >= 1.0 - _EPSILON else (1.0 - self._level) / self._allowed_per_s

    def take(self) -> None:
        self._level -= 1.0
        self._smoothed_per_s += 1.0 / self._window_s


class AccountLimits:
    """All limits of one account and model class."""

    def __init__(self, spec: LimitsSpec, speedup: float, now: float) -> None:
        burst_s = spec.burst_s / speedup

        def bucket(per_minute: float | None) -> TokenBucket | None:
            return None if per_minute is None else TokenBucket(per_minute * speedup, burst_s, now)

        self.requests = bucket(spec.requests_per_min)
        self.input_tokens = bucket(spec.input_tokens_per_min)
        self.output_tokens = bucket(spec.output_tokens_per_min)
        self._acceleration = (
            None if spec.acceleration is None else _Acceleration(spec.acceleration, speedup, now)
        )
        self._second = 1.0 / speedup

    def refuse(self, input_tokens: int, now: float) -> Refusal | None:
        """Why a request of `input_tokens` uncached tokens is refused now; None: it is admitted and charged.

        `retry_after_s` is in whole seconds, rounded up, as the header carries it (a second of the profile's own time).
        """
        # Tokens of output are free to begin with; a bucket in debt refuses.
        wanted = (
            ("requests", self.requests, 1.0),
            ("input tokens", self.input_tokens, float(input_tokens)),
            ("output tokens", self.output_tokens, 1.0),
        )
        for name, bucket, cost in wanted:
            wait_s = 0.0 if bucket is None else bucket.wait_s(cost, now)
            if wait_s > 0:
                return Refusal(f"{name} per minute", self._whole_seconds(wait_s))
        if self._acceleration is not None:
            wait_s = self._acceleration.wait_s(now)
            if wait_s > 0:
                return Refusal("acceleration", self._whole_seconds(wait_s))
            self._acceleration.take()
        if self.requests is not None:
            self.requests.take(1.0, now)
        if self.input_tokens is not None:
            self.input_tokens.take(float(input_tokens), now)
        return None

    def _whole_seconds(self, wait_s: float) -> float:
        return max(1, math.ceil(wait_s / self._second - _EPSILON)) * self._second
