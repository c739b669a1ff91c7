"""Rate limits as response headers: limit, what is left, and when the bucket will be full again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from simulation.models.endpoint.limits import AccountLimits, BucketState

__all__ = ["limit_headers"]


def limit_headers(
    limits: AccountLimits | None, now: float, wall_now: datetime
) -> list[tuple[bytes, bytes]]:
    """`anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}` of what is limited.

    Token counts are rounded to 1,000; `tokens` is the more restrictive of input and output.
    """
    if limits is None:
        return []
    headers: list[tuple[bytes, bytes]] = []
    if limits.requests is not None:
        headers += _lines(b"requests", limits.requests.state(now), wall_now, 1)
    tightest: BucketState | None = None
    for name, bucket in (
        (b"input-tokens", limits.input_tokens),
        (b"output-tokens", limits.output_tokens),
    ):
        if bucket is None:
            continue
        state = bucket.state(now)
        headers += _lines(name, state, wall_now, 1_000)
        if tightest is None or state.remaining < tightest.remaining:
            tightest = state
    if tightest is not None:
        headers += _lines(b"tokens", tightest, wall_now, 1_000)
    return headers


def _lines(
    name: bytes, state: BucketState, wall_now: datetime, unit: int
) -> list[tuple[bytes, bytes]]:
    remaining = round(state.remaining / unit) * unit if unit > 1 else int(state.remaining)
    reset = (wall_now + timedelta(seconds=max(0.0, state.reset_s))).astimezone(UTC)
    prefix = b"anthropic-ratelimit-" + name
    return [
        (prefix + b"-limit", b"%d" % state.limit),
        (prefix + b"-remaining", b"%d" % remaining),
        (prefix + b"-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ").encode()),
    ]
