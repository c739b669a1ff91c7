"""How requests arrive, as a scenario file says it (`workload.arrivals`).

Open arrivals come at instants that the system cannot influence; they are compiled before the run. Closed users and
sessions wait for answers: only their first instants are compiled, the later ones are outcomes of the run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reference_impl.deployment import Spec
from simulation.scenario.distributions import Distribution

__all__ = [
    "Arrivals",
    "BatchArrivals",
    "ClosedArrivals",
    "ConstantArrivals",
    "DiurnalArrivals",
    "GammaArrivals",
    "MmppArrivals",
    "MmppState",
    "OpenArrivals",
    "PiecewiseArrivals",
    "PoissonArrivals",
    "RateSegment",
    "RenewalArrivals",
    "SessionArrivals",
    "TraceArrivals",
]

Rate = Annotated[float, Field(gt=0, le=1e6)]
RateOrZero = Annotated[float, Field(ge=0, le=1e6)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ConstantArrivals(Spec):
    """One request every 1/rate seconds, the first after one such gap."""

    kind: Literal["constant"] = "constant"
    rate_per_s: Rate


class PoissonArrivals(Spec):
    """Independent users in large number: exponential gaps."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: Rate


class GammaArrivals(Spec):
    """Gaps from a gamma distribution: `cv` 1 is Poisson, above it bursty, below it regular."""

    kind: Literal["gamma"] = "gamma"
    rate_per_s: Rate
    cv: Annotated[float, Field(ge=0.05, le=20)]


class RenewalArrivals(Spec):
    """Independent gaps of any distribution."""

    kind: Literal["renewal"] = "renewal"
    gap_s: Distribution

    @model_validator(mode="after")
    def _moves_on(self) -> RenewalArrivals:
        if self.gap_s.mean() <= 0:
            raise ValueError("gap_s has mean 0: time would stand still")
        return self


class BatchArrivals(Spec):
    """Batches at Poisson instants; the requests of one batch come together. `rate_per_s` counts requests."""

    kind: Literal["batch"] = "batch"
    rate_per_s: Rate
    batch_size: Distribution

    @model_validator(mode="after")
    def _not_empty(self) -> BatchArrivals:
        if self.batch_size.mean() < 1:
            raise ValueError(
                f"batch_size has mean {self.batch_size.mean():g}; at least 1 is needed"
            )
        return self


class RateSegment(Spec):
    """`duration_s` at `rate_per_s`; with `to_rate_per_s` the rate moves there in a straight line."""

    duration_s: PositiveSeconds
    rate_per_s: RateOrZero
    to_rate_per_s: RateOrZero | None = None


class PiecewiseArrivals(Spec):
    """Steps and ramps: Poisson arrivals (or, with `regular`, evenly spaced ones) whose rate follows the segments.

    After the last segment they start again with `repeat`; without it the last rate holds.
    """

    kind: Literal["piecewise"] = "piecewise"
    segments: Annotated[tuple[RateSegment, ...], Field(min_length=1, max_length=10_000)]
    repeat: bool = False
    regular: bool = False


class DiurnalArrivals(Spec):
    """Poisson arrivals with a daily wave: rate * (1 + amplitude * cos(2 pi (t - peak_at_s)/period_s))."""

    kind: Literal["diurnal"] = "diurnal"
    rate_per_s: Rate
    amplitude: Annotated[float, Field(ge=0, le=1)] = 0.5
    period_s: PositiveSeconds = 86_400.0
    peak_at_s: Seconds = 50_400.0


class MmppState(Spec):
    """A state of the modulating chain: its rate, and how long it lasts on average (exponential)."""

    rate_per_s: RateOrZero
    mean_s: PositiveSeconds


class MmppArrivals(Spec):
    """Markov-modulated Poisson: the rate jumps between states.

    The chain starts in its first state. From state i it moves to j with probability `transitions[i][j]` (diagonal 0);
    without `transitions` the states follow each other in turn.
    """

    kind: Literal["mmpp"] = "mmpp"
    states: Annotated[tuple[MmppState, ...], Field(min_length=2, max_length=100)]
    transitions: tuple[tuple[Annotated[float, Field(ge=0, le=1)], ...], ...] | None = None

    @model_validator(mode="after")
    def _stochastic(self) -> MmppArrivals:
        if self.transitions is None:
            return self
        n = len(self.states)
        if len(self.transitions) != n or any(len(row) != n for row in self.transitions):
            raise ValueError(f"transitions must be {n} rows of {n} probabilities, one per state")
        for i, row in enumerate(self.transitions):
            if abs(sum(row) - 1) > 1e-9 or row[i] != 0:
                raise ValueError(
                    f"transitions[{i}] must add up to 1 with 0 at its own place, found {list(row)}"
                )
        return self


class TraceArrivals(Spec):
    """Instants and token counts of a recorded trace: Azure or BurstGPT (CSV), Mooncake (JSONL), told by their columns.

    Times count from the trace's first row. The slice `start_s <= t < end_s` is kept, at most `limit` rows of it; its
    times then count from `start_s` and are divided by `speed`. A relative `path` in a scenario file is relative to it.
    """

    kind: Literal["trace"] = "trace"
    path: Annotated[str, Field(min_length=1)]
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    start_s: Seconds = 0.0
    end_s: PositiveSeconds | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _window(self) -> TraceArrivals:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s:g}) is not after start_s ({self.start_s:g})")
        return self


OpenArrivals = Annotated[
    ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | RenewalArrivals
    | BatchArrivals
    | PiecewiseArrivals
    | DiurnalArrivals
    | MmppArrivals,
    Field(discriminator="kind"),
]


class ClosedArrivals(Spec):
    """`users` who each think, send, wait for the answer, and think again.

    They go on until the horizon, or for `requests_per_user`. A user starts with a think time, after a delay spread
    evenly over `ramp_s`.
    """

    kind: Literal["closed"] = "closed"
    users: Annotated[int, Field(ge=1, le=1_000_000)]
    think_s: Distribution
    requests_per_user: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    ramp_s: Seconds = 0.0

    @model_validator(mode="after")
    def _bounded(self) -> ClosedArrivals:
        if self.requests_per_user is None and self.think_s.mean() <= 0:
            raise ValueError(
                "think_s is 0, so the number of requests has no bound: set requests_per_user"
            )
        return self


class SessionArrivals(Spec):
    """Conversations: sessions start like `starts`; turn k+1 follows the answer to turn k after `think_s`.

    `turns` is the number of turns of a session (rounded, at least 1, at most `max_turns`). Every turn carries the
    conversation so far: its input is all earlier turns and answers plus `workload.input_tokens` of its own. A session
    ends early when that would exceed `workload.max_input_tokens`.
    """

    kind: Literal["sessions"] = "sessions"
    starts: OpenArrivals
    turns: Distribution
    think_s: Distribution
    max_turns: Annotated[int, Field(ge=1, le=10_000)] = 100


Arrivals = Annotated[
    ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | RenewalArrivals
    | BatchArrivals
    | PiecewiseArrivals
    | DiurnalArrivals
    | MmppArrivals
    | TraceArrivals
    | ClosedArrivals
    | SessionArrivals,
    Field(discriminator="kind"),
]
