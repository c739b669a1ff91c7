"""BatchWorker: answers the requests of batches. It is the handler of their tasks and the store of their effects.

A run claims its request, which counts it; reserves what the answer may cost; calls; and records the result together with the
row of the ledger, once. So a task that runs twice is debited once, and the calls that a crash made again show in the row's
`attempts`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import msgspec

from reference_impl.batches.params import parse_params
from reference_impl.batches.port import BatchStore, Claim, ResultKind
from reference_impl.batches.service import TASK_TYPE
from reference_impl.database.accounting import BYTES_PER_TOKEN, most_nanousd
from reference_impl.database.budgets import Budgets
from reference_impl.database.entries import LedgerEntry, to_nanousd
from reference_impl.database.errors import DatabaseUnavailable, summary
from reference_impl.errors import InvalidRequest, Overloaded, Rejected, RequestTimeout, ServiceError
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import ATTEMPT_STRIDE, Call, RequestTag, Usage
from reference_impl.prices import PriceTable
from reference_impl.queues.effects import Begun, EffectsUnavailable
from reference_impl.queues.port import QueuedTask
from reference_impl.request_head import NO_HEAD, RequestHead
from reference_impl.sane_text import sane_text
from reference_impl.task_processor import TaskProcessor
from reference_impl.telemetry import RequestTrace
from reference_impl.telemetry.records import Outcome

__all__ = ["BatchWorker", "call_id"]

# Beyond the time of an answer: what a handler may take that heeds its own limit.
_GRACE_S = 10.0


class _Effect(msgspec.Struct):
    """What a run leaves: the result as the API shows it, and the row that it costs. `at_s`: when it came; None: now."""

    kind: ResultKind
    result: msgspec.Raw
    entry: LedgerEntry | None = None
    at_s: float | None = None


_encode = msgspec.json.Encoder().encode
_decode_effect = msgspec.json.Decoder(_Effect).decode


class _Claimed(msgspec.Struct):
    """A claim, and how long the store took for it."""

    claim: Claim
    took_s: float


class BatchWorker:
    """Implements the handler for `register`, and `EffectStore` for the processor that runs it.

    Args:
        port: answers calls; it stays its owner's.
        store: of the batches. budgets: money of their tenants; None: not limited.
        prices: what answers cost, at the price for batches.
        wall_clock: Unix seconds.
        timeout_s: for an answer.
        instance: named in the ledger's rows.
        tags: heed `custom_id`s that are tags (`RequestTag.custom_id`), as where the endpoint is a mock.
        on_recorded: told every result that was recorded here: the task's key, and the call with its trace.
    """

    def __init__(
        self,
        port: MessagesPort,
        store: BatchStore,
        prices: PriceTable,
        *,
        wall_clock: Callable[[], float],
        budgets: Budgets | None = None,
        timeout_s: float = 600.0,
        instance: str = "",
        tags: bool = False,
        on_recorded: Callable[[str, Call], None] | None = None,
    ) -> None:
        self._port = port
        self._store = store
        self._prices = prices
        self._wall_clock = wall_clock
        self._budgets = budgets
        self._timeout_s = timeout_s
        self._instance = instance
        self._tags = tags
        self._on_recorded = on_recorded
        self._time = asyncio.get_running_loop().time
        # From the claim in `begin` to the handler that is run next, and from there to the record in `finish`.
        self._claims: dict[str, _Claimed] = {}
        self._answered: dict[str, Call] = {}

    def register(self, processor: TaskProcessor) -> None:
        """Handle the tasks of batches in a processor whose `effects` is this worker."""
        processor.register_handler(
            TASK_TYPE, self.handle, timeout_s=self._timeout_s + _GRACE_S, whole_task=True
        )

    # -- the effects --------------------------------------------------------------------------------------------------

    async def begin(self, key: str) -> Begun:
        batch_id, index = _place(key)
        asked_s = self._time()
        try:
            claim = await self._store.claim(batch_id, index)
        except DatabaseUnavailable as error:
            raise EffectsUnavailable(summary(error)) from error
        if claim is None:
            return Begun(1, b"")  # it has its result, or its batch is gone
        self._claims[key] = _Claimed(claim, self._time() - asked_s)
        return Begun(claim.runs)

    async def finish(self, key: str, effect: bytes) -> bool:
        batch_id, index = _place(key)
        done = _decode_effect(effect)
        at_s = self._wall_clock() if done.at_s is None else done.at_s
        try:
            first = await self._store.record(
                batch_id, index, done.kind, bytes(done.result), at_s, done.entry
            )
        except DatabaseUnavailable as error:
            raise EffectsUnavailable(summary(error)) from error
        except BaseException:
            del self._answered[key]
            raise
        call = self._answered.pop(key)
        if first and self._on_recorded is not None:
            self._on_recorded(key, call)
        return first

    async def aclose(self) -> None:
        """Store, budgets and port are their owners' to close."""

    # -- the handler --------------------------------------------------------------------------------------------------

    async def handle(self, task: QueuedTask) -> _Effect:
        """One claimed request, to its result. Raises the call's error while another attempt may succeed."""
        claimed = self._claims.pop(task.key)
        claim = claimed.claim
        wrong: InvalidRequest | None = None
        try:
            params = parse_params(claim.params)
        except InvalidRequest as error:
            params, wrong = NO_HEAD, error
        call = self._answered[task.key] = self._call_of(task, claimed, params)
        try:
            return await self._effect_of(task, claim, call, wrong)
        except BaseException:
            del self._answered[task.key]
            raise

    async def _effect_of(
        self, task: QueuedTask, claim: Claim, call: Call, wrong: InvalidRequest | None
    ) -> _Effect:
        """`wrong`: what keeps the request from being called for at all."""
        if claim.is_canceled:
            return _Effect("canceled", msgspec.Raw(b'{"type":"canceled"}'))
        if self._wall_clock() >= claim.expires_s:
            # As of then, and not of whenever somebody came to it.
            return _Effect("expired", msgspec.Raw(b'{"type":"expired"}'), at_s=claim.expires_s)
        usage = Usage()
        outcome: Outcome = "ok"
        kind: ResultKind = "succeeded"
        try:
            if wrong is not None:
                raise wrong
            body, usage = await self._answer(call)
            result = b'{"type":"succeeded","message":%b}' % _on_one_line(body)
        except ServiceError as error:
            if error.retryable and task.retry_count < task.max_retries:
                raise
            kind, outcome, result = "errored", error.outcome, _errored(error)
        cost_usd = self._prices.price_usd(call.model, usage, batch=True)
        entry = LedgerEntry(
            entry_id=task.key,
            at_s=self._wall_clock(),
            key_id=sane_text(claim.tenant),
            model=sane_text(call.model),
            kind="batch",
            outcome=outcome,
            attempts=call.trace.attempts,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
            output_tokens=usage.output_tokens,
            cost_nanousd=to_nanousd(cost_usd),
            latency_s=self._wall_clock() - claim.created_s,
            instance=self._instance,
        )
        return _Effect(kind, msgspec.Raw(result), entry)

    async def _answer(self, call: Call) -> tuple[bytes, Usage]:
        """The message and what it used, with money held meanwhile. Raises a ServiceError."""
        reservation = None
        cost_nanousd = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._budgets is not None:
                    most = most_nanousd(self._prices, call, batch=True)
                    asked_s = self._time()
                    try:
                        reservation = await self._budgets.reserve(call.tenant, most)
                    finally:
                        call.trace.database_s += self._time() - asked_s
                completion = await self._port.complete(call)
            usage = completion.usage
            cost_nanousd = to_nanousd(self._prices.price_usd(call.model, usage, batch=True))
            return completion.body or b"null", usage  # none in virtual time
        except TimeoutError as error:
            raise RequestTimeout(f"no answer within {self._timeout_s:g} s") from error
        except Rejected as error:
            # Our own queues are full, or an instance drains: that is no fault of the request, which can wait.
            raise Overloaded(error.message, retry_after_s=error.retry_after_s) from error
        finally:
            if self._budgets is not None and reservation is not None:
                self._budgets.settle(reservation, cost_nanousd)

    def _call_of(self, task: QueuedTask, claimed: _Claimed, params: RequestHead) -> Call:
        """The call of a run. Its trace begins where the batch was taken in; runs before this one are waits in the queue."""
        claim = claimed.claim
        tag = RequestTag.of_custom_id(claim.custom_id) if self._tags else None
        if tag is None:
            tag = RequestTag(call_id(task.key))
        tag = msgspec.structs.replace(tag, attempt=ATTEMPT_STRIDE * (claim.runs - 1))
        enqueued_s = claim.created_s if task.enqueued_s is None else task.enqueued_s
        return Call(
            request_id=tag.request_id,
            model=params.model,
            max_tokens=params.max_tokens,
            stream=False,
            trace=RequestTrace(
                instance=self._instance,
                admission_s=max(0.0, enqueued_s - claim.created_s),
                queue_wait_s=max(0.0, self._wall_clock() - claimed.took_s - enqueued_s),
                database_s=claimed.took_s,
            ),
            tenant=claim.tenant,
            attempt=tag.attempt,
            input_tokens=tag.input_tokens or len(claim.params) // BYTES_PER_TOKEN,
            size_bytes=len(claim.params),
            body=claim.params,
            tag=tag,
        )


def call_id(key: str) -> int:
    """The id of the call for a task: the same in all of its runs, and apart from those of other batches. 53 bits."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest()) >> 3


def _place(key: str) -> tuple[str, int]:
    batch_id, _, index = key.rpartition("/")
    return batch_id, int(index)


def _on_one_line(body: bytes) -> bytes:
    """JSON without line breaks: a result is a line of its batch's file."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def _errored(error: ServiceError) -> bytes:
    document = {
        "type": "errored",
        "error": {
            "type": "error",
            "error": {"type": error.error_type, "message": error.message},
            "request_id": error.request_id or None,
        },
    }
    return _encode(document)
