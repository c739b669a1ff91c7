"""Replays a compiled workload open loop: each request leaves when the workload wants it, whatever the earlier ones do.

One greenlet sleeps until the next start and hands the request to a greenlet of its own; it never waits for an answer. A pool
of users that take work as they become free would send less exactly when the system is slow, and so hide the slowness
(coordinated omission). Requests beyond `max_in_flight` wait in line: late, counted, and never lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

import gevent
import msgspec
from gevent.event import Event
from gevent.pool import Group

from loadtests.client_rows import ClientRow, RowWriter
from loadtests.http_client import HttpClient
from loadtests.metrics import ClientMetrics
from loadtests.reply import Reply
from loadtests.target import API_VERSION, PATH
from reference_impl.messages import ATTEMPT_STRIDE, TAG_HEADER, RequestTag
from reference_impl.prices import load_prices
from reference_impl.telemetry import Outcome
from simulation.scenario.prompts import request_body
from simulation.scenario.random_streams import uniforms
from simulation.scenario.workload import CompiledWorkload

__all__ = ["Injector", "InjectorOptions"]

FLUSH_INTERVAL_S: Final = 0.5
RETRY_BACKOFF_S: Final = 0.5
RETRY_BACKOFF_MAX_S: Final = 8.0

_RETRYABLE: Final[frozenset[Outcome]] = frozenset(
    {"rejected", "rate_limited", "overloaded", "server_error", "connection_error", "timeout"}
)


class InjectorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to replay.

    Attributes:
        horizon_s: no request is sent that is due at or after it. drain_s: how long afterwards answers are awaited.
        max_in_flight: bound on requests in flight in this process.
        request_timeout_s: bound on one attempt.
        retries: attempts that the client makes beyond the first; `retry-after` is honoured.
        tags: send `x-twinload-request`; never to a real provider.
        seed: for the jitter of retries.
        api_keys: sent as `x-api-key`, one per tenant of the workload, or one for all, or none.
    """

    horizon_s: float
    drain_s: float
    max_in_flight: int = 10_000
    request_timeout_s: float = 600.0
    retries: int = 0
    tags: bool = True
    seed: int = 0
    api_keys: tuple[str, ...] = ()


class _Due(msgspec.Struct, eq=False):
    """A request that is ready to leave, or under way. `at` and `sent_at` are instants on the monotonic clock."""

    row: int
    at: float
    body: bytes
    sent_at: float = math.nan
    attempts: int = 0
    overflow: bool = False


class Injector:
    """One open-loop source of requests. `run(t0)` blocks its greenlet until the end; `stop()` ends it early.

    `on_reply(row, reply)` is called once per logical request.
    """

    def __init__(
        self,
        workload: CompiledWorkload,
        rows: Sequence[int],
        client: HttpClient,
        writer: RowWriter,
        options: InjectorOptions,
        *,
        metrics: ClientMetrics,
        on_reply: Callable[[ClientRow, Reply], None] = lambda _row, _reply: None,
    ) -> None:
        self.workload = workload
        self.metrics = metrics
        self._client = client
        self._writer = writer
        self._options = options
        self._on_reply = on_reply
        mine = set(rows)
        self._starts = [row for row in workload.open_rows.tolist() if row in mine]
        self._prices = load_prices()
        self._t0 = math.nan
        self._flying: dict[int, _Due] = {}
        self._thinking = 0
        self._stopping = Event()
        self._waiting: deque[_Due] = deque()
        self._greenlets = Group()
        self._idle = Event()
        self._fixed_headers = [
            f"anthropic-version: {API_VERSION}\r\nuser-agent: twinload\r\n"
            + (f"x-api-key: {key}\r\n" if key else "")
            for key in options.api_keys or ("",)
        ]

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def run(self, t0: float) -> None:
        """Send everything from `t0` (monotonic clock), await the answers, write the rows.

        Ends when the last answer is in, or `drain_s` after the horizon; what is in flight then is `unfinished`.
        """
        self._t0 = t0
        self._greenlets.spawn(self._flush_for_ever)
        try:
            self._send_all(t0)
            end = t0 + self._options.horizon_s + self._options.drain_s
            while self._flying or self._thinking:
                self._idle.clear()
                if not self._idle.wait(max(0.0, end - monotonic())):
                    break
        finally:
            self.stop()

    def _send_all(self, t0: float) -> None:
        intended_s = self.workload.intended_s
        horizon_s = self._options.horizon_s
        for row in self._starts:
            due_s = float(intended_s[row])
            if due_s >= horizon_s:
                break
            # Encoded before it is due: the work stays off the critical path.
            due = _Due(row, t0 + due_s, request_body(self.workload, row))
            ahead_s = due.at - monotonic()
            if ahead_s <= 0.0:
                gevent.sleep(0)  # behind: let the others run
            else:
                self._stopping.wait(ahead_s)
            if self._stopping.is_set():
                return
            self._hand_over(due)

    def stop(self) -> None:
        """End now. Requests in flight or in line are recorded as `unfinished`. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for due in (*self._flying.values(), *self._waiting):
            self._record(due, Reply(outcome="unfinished"))
        self._flying.clear()
        self._waiting.clear()
        self._thinking = 0
        self._idle.set()
        # Not waited for: their rows are written, and whoever stops must not be held up.
        self._greenlets.kill(block=False)
        self._client.close()
        self._writer.close()

    def _flush_for_ever(self) -> None:
        while not self._stopping.wait(FLUSH_INTERVAL_S):
            self._writer.flush()

    def _hand_over(self, due: _Due) -> None:
        if len(self._flying) >= self._options.max_in_flight:
            due.overflow = True
            self.metrics.counts["overflow"] += 1
            self._waiting.append(due)
            return
        self._flying[due.row] = due
        self._greenlets.spawn(self._carry, due)

    def _carry(self, due: _Due) -> None:
        """Perform a request, then whatever waits in line for this place."""
        while True:
            reply = self._perform(due)
            if self._flying.pop(due.row, None) is None:
                return  # stopped meanwhile, and accounted for
            done_s = self._record(due, reply)
            self._continue_session(due.row, done_s)
            if not self._waiting:
                break
            due = self._waiting.popleft()
            self._flying[due.row] = due
        self._idle.set()

    def _perform(self, due: _Due) -> Reply:
        """All attempts of one request; the first is the one that counts as sent."""
        options = self._options
        due.sent_at = monotonic()
        leaves_at = due.sent_at + float(self.workload.patience_s[due.row])
        while True:
            headers = self._headers(due.row, due.attempts)
            due.attempts += 1
            reply = self._client.post(
                PATH,
                headers,
                due.body,
                timeout_s=options.request_timeout_s,
                patience_s=leaves_at - monotonic(),
            )
            if reply.outcome not in _RETRYABLE or due.attempts > options.retries:
                return reply
            wait_s = self._retry_wait_s(due.row, due.attempts, reply)
            left_s = max(0.0, leaves_at - monotonic())
            gevent.sleep(min(wait_s, left_s))
            if left_s < wait_s:
                reply.outcome = "cancelled"
                return reply

    def _record(self, due: _Due, reply: Reply) -> float:
        """Write the row of a request that has ended, now; returns its `done_s`."""
        t0 = self._t0
        done_s = monotonic() - t0
        first = reply.first_token_at
        row = ClientRow(
            request_id=due.row,
            intended_s=due.at - t0,
            sent_s=done_s if math.isnan(due.sent_at) else due.sent_at - t0,
            first_token_s=None if math.isnan(first) else first - t0,
            done_s=done_s,
            outcome=reply.outcome,
            status=reply.status,
            attempts=due.attempts,
            overflow=due.overflow,
            input_tokens=reply.input_tokens,
            cached_tokens=reply.cached_tokens,
            output_tokens=reply.output_tokens,
            cost_usd=self._prices.cost_usd(
                self.workload.models[self.workload.model[due.row]],
                input_tokens=reply.input_tokens - reply.cached_tokens,
                output_tokens=reply.output_tokens,
                cache_read_input_tokens=reply.cached_tokens,
            ),
        )
        self._writer.write(row)
        self.metrics.record(row)
        self._on_reply(row, reply)
        return done_s

    def _continue_session(self, row: int, done_s: float) -> None:
        """The next turn follows the completion of this one, however it ended, after the think time."""
        following = int(self.workload.next_row[row])
        if following < 0:
            return
        due_s = done_s + float(self.workload.think_s[following])
        if due_s < self._options.horizon_s:
            self._thinking += 1
            self._greenlets.spawn(self._think, following, self._t0 + due_s)

    def _think(self, row: int, at: float) -> None:
        due = _Due(row, at, request_body(self.workload, row))
        if self._stopping.wait(max(0.0, at - monotonic())):
            return
        self._thinking -= 1
        self._hand_over(due)

    def _headers(self, row: int, attempt: int) -> str:
        workload = self.workload
        fixed = self._fixed_headers
        headers = fixed[int(workload.tenant[row])] if len(fixed) > 1 else fixed[0]
        if not self._options.tags:
            return headers
        tag = RequestTag(
            request_id=row,
            attempt=attempt * ATTEMPT_STRIDE,
            prompt_id=int(workload.prompt_id[row]),
            input_tokens=int(workload.input_tokens[row]),
            output_tokens=int(workload.output_tokens[row]),
        )
        return f"{headers}{TAG_HEADER}: {tag.encode()}\r\n"

    def _retry_wait_s(self, row: int, attempt: int, reply: Reply) -> float:
        """What the peer asked for, or exponential back-off with full jitter."""
        if reply.retry_after_s is not None:
            return reply.retry_after_s
        cap_s = min(RETRY_BACKOFF_MAX_S, RETRY_BACKOFF_S * 2.0 ** (attempt - 1))
        jitter: float = uniforms(self._options.seed, "client-retry", row, attempt)[0]
        return cap_s * jitter
