"""BatchWorker: answers the requests of batches. It is the handler of their tasks and the store of their effects.

A run claims its request, which counts it; reserves what the answer may cost; calls; and records the result together with the
row of the ledger, once. So a task that runs twice is debited once, and the calls that a crash made again show in the row's
`attempts`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from reference_impl.batches.port import BatchStore, Claim, ResultKind
from reference_impl.batches.service import TASK_TYPE
from reference_impl.database.accounting import BYTES_PER_TOKEN, most_nanousd
from reference_impl.database.budgets import Budgets
from reference_impl.database.entries import LedgerEntry, sane_text, to_nanousd
from reference_impl.database.errors import DatabaseUnavailable, summary
from reference_impl.errors import Overloaded, Rejected, RequestTimeout, ServiceError
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, RequestTag, Usage
from reference_impl.prices import PriceTable
from reference_impl.queues.effects import Begun, EffectsUnavailable
from reference_impl.queues.port import QueuedTask
from reference_impl.task_processor import TaskProcessor
from reference_impl.telemetry import RequestTrace
from reference_impl.telemetry.records import Outcome

__all__ = ["BatchWorker", "call_id"]

# Beyond the time of an answer: what a handler may take that heeds its own limit.
_GRACE_S = 10.0


class _Effect(msgspec.Struct):
    """What a run leaves: the result as the API shows it, and the row that it costs."""

    kind: ResultKind
    result: msgspec.Raw
    entry: LedgerEntry | None = None


_encode = msgspec.json.Encoder().encode
_decode_effect = msgspec.json.Decoder(_Effect).decode


class BatchWorker:
    """Implements the handler for `register`, and `EffectStore` for the processor that runs it.

    Args:
        port: answers calls; it stays its owner's.
        store: of the batches. budgets: money of their tenants; None: not limited.
        prices: what answers cost, at the price for batches.
        wall_clock: Unix seconds.
        timeout_s: for an answer.
        instance: named in the ledger's rows.
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
    ) -> None:
        self._port = port
        self._store = store
        self._prices = prices
        self._wall_clock = wall_clock
        self._budgets = budgets
        self._timeout_s = timeout_s
        self._instance = instance
        # From the claim in `begin` to the handler that is run next.
        self._claims: dict[str, Claim] = {}

    def register(self, processor: TaskProcessor) -> None:
        """Handle the tasks of batches in a processor whose `effects` is this worker."""
        processor.register_handler(
            TASK_TYPE, self.handle, timeout_s=self._timeout_s + _GRACE_S, whole_task=True
        )

    # -- the effects --------------------------------------------------------------------------------------------------

    async def begin(self, key: str) -> Begun:
        batch_id, index = _place(key)
        try:
            claim = await self._store.claim(batch_id, index)
        except DatabaseUnavailable as error:
            raise EffectsUnavailable(summary(error)) from error
        if claim is None:
            return Begun(1, b"")  # it has its result, or its batch is gone
        self._claims[key] = claim
        return Begun(claim.runs)

    async def finish(self, key: str, effect: bytes) -> bool:
        batch_id, index = _place(key)
        done = _decode_effect(effect)
        now = self._wall_clock()
        try:
            return await self._store.record(
                batch_id, index, done.kind, bytes(done.result), now, done.entry
            )
        except DatabaseUnavailable as error:
            raise EffectsUnavailable(summary(error)) from error

    async def aclose(self) -> None:
        """Store, budgets and port are their owners' to close."""

    # -- the handler --------------------------------------------------------------------------------------------------

    async def handle(self, task: QueuedTask) -> _Effect:
        """One claimed request, to its result. Raises the call's error while another attempt may succeed."""
        claim = self._claims.pop(task.key)
        if claim.is_canceled:
            return _Effect("canceled", msgspec.Raw(b'{"type":"canceled"}'))
        if self._wall_clock() >= claim.expires_s:
            return _Effect("expired", msgspec.Raw(b'{"type":"expired"}'))
        call = _call_of(task.key, claim)
        usage = Usage()
        outcome: Outcome = "ok"
        kind: ResultKind = "succeeded"
        try:
            body, usage = await self._answer(call)
            result = b'{"type":"succeeded","message":%b}' % body
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
                    reservation = await self._budgets.reserve(call.tenant, most)
                completion = await self._port.complete(call)
            usage = completion.usage
            cost_nanousd = to_nanousd(self._prices.price_usd(call.model, usage, batch=True))
            return completion.body, usage
        except TimeoutError as error:
            raise RequestTimeout(f"no answer within {self._timeout_s:g} s") from error
        except Rejected as error:
            # Our own queues are full, or an instance drains: that is no fault of the request, which can wait.
            raise Overloaded(error.message, retry_after_s=error.retry_after_s) from error
        finally:
            if self._budgets is not None and reservation is not None:
                self._budgets.settle(reservation, cost_nanousd)


def call_id(key: str) -> int:
    """The id of the call for a task: the same in all of its runs, and apart from those of other batches. 53 bits."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest()) >> 3


def _place(key: str) -> tuple[str, int]:
    batch_id, _, index = key.rpartition("/")
    return batch_id, int(index)


def _call_of(key: str, claim: Claim) -> Call:
    params: dict[str, Any] = msgspec.json.decode(claim.params)
    request_id = call_id(key)
    return Call(
        request_id=request_id,
        model=params["model"],
        max_tokens=params["max_tokens"],
        stream=False,
        trace=RequestTrace(),
        tenant=claim.tenant,
        attempt=claim.runs - 1,
        input_tokens=len(claim.params) // BYTES_PER_TOKEN,
        size_bytes=len(claim.params),
        body=claim.params,
        tag=RequestTag(request_id, attempt=claim.runs - 1),
    )


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
