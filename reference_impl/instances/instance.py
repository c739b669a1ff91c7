"""One instance: a processor behind concurrency slots, a bounded queue, and a way to finish in peace."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from reference_impl.compute import Compute, InlineCompute
from reference_impl.errors import (
    ConnectionFailed,
    EndpointUnreachable,
    InvalidRequest,
    NoInstance,
    Rejected,
    ServiceError,
)
from reference_impl.instances.monitor import InstanceMonitor
from reference_impl.instances.port import InstanceMetrics
from reference_impl.instances.slots import Slot, Slots, SlotsStatistics
from reference_impl.messages import BYTES_PER_KB, Call, Completion, Emit
from reference_impl.relay import Relay
from reference_impl.telemetry import StationSample

__all__ = ["Instance", "InstanceStatistics", "SlotAwareProcessor"]


class SlotAwareProcessor(Protocol):
    """A MessagesPort that gives the caller's slot back while it waits between attempts."""

    async def complete(
        self, call: Call, emit: Emit | None = None, slot: Slot | None = None
    ) -> Completion: ...

    async def aclose(self) -> None: ...


class InstanceStatistics(msgspec.Struct, frozen=True):
    """An instance at one instant; `in_flight` calls hold a slot, wait for one, or wait between attempts.

    admitted = succeeded + failed + cancelled + in_flight; `rejected` (queue full) and `refused` (draining) are beside it.
    """

    instance_id: str
    draining: bool
    in_flight: int
    admitted: int
    succeeded: int
    failed: int
    cancelled: int
    rejected: int
    refused: int
    slots: SlotsStatistics


class Instance:
    """Implements `MessagesPort` over `processor`: `concurrency` calls at once, at most `queue_limit` newcomers wait.

    A slot is held from admission to the last byte and given back during retry waits, through the `Slot` that the
    processor is handed. Must be made on the running loop.
    """

    def __init__(
        self,
        instance_id: str,
        processor: SlotAwareProcessor,
        *,
        compute: Compute | None = None,
        concurrency: int = 16,
        queue_limit: int = 256,
        weight: float = 1.0,
        metrics_window_s: float = 5.0,
    ) -> None:
        self.instance_id = instance_id
        self.concurrency = concurrency
        self.weight = weight
        self._processor = processor
        self._compute: Compute = compute if compute is not None else InlineCompute()
        self._loop = asyncio.get_running_loop()
        self._slots = Slots(concurrency, queue_limit, f"{instance_id} slots")
        self._monitor = InstanceMonitor(instance_id, self._loop.time(), window_s=metrics_window_s)
        self._idle: asyncio.Future[None] | None = None
        self._draining = False
        self._in_flight = 0
        self._succeeded = 0
        self._failed = 0
        self._cancelled = 0
        self._rejected = 0
        self._refused = 0

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        """Answer `call` on a slot; writes `call.trace.instance_wait_s`.

        Raises Rejected when the queue is full, NoInstance when the instance is draining, else what the processor raises.
        """
        if self._draining:
            self._refused += 1
            raise NoInstance(f"{self.instance_id} is draining and takes no new calls")
        time = self._loop.time
        from_s = time()
        lease = self._slots.lease(call.trace)
        admitted = False
        self._in_flight += 1
        try:
            await self._compute.use("parse", call.size_bytes / BYTES_PER_KB)
            await lease.acquire()
            admitted = True
            await self._compute.use("forward", call.size_bytes / BYTES_PER_KB)
            relay = None if emit is None else Relay(emit, self._compute)
            completion = await self._processor.complete(call, relay, lease)
            await self._compute.use("encode", completion.size_bytes / BYTES_PER_KB)
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        except InvalidRequest:
            # The client's fault: the instance did its work.
            self._failed += 1
            self._monitor.observe(time() - from_s, ok=True)
            raise
        except Rejected:
            if admitted:
                self._failed += 1
                self._monitor.observe(time() - from_s, ok=False)
            else:
                self._rejected += 1
                self._monitor.rejected()
            raise
        except ConnectionFailed as error:
            self._failed += 1
            self._monitor.observe(time() - from_s, ok=False, own_fault=True)
            raise EndpointUnreachable(error.message, request_id=error.request_id) from error
        except Exception as error:
            self._failed += 1
            own_fault = not isinstance(error, ServiceError)
            self._monitor.observe(time() - from_s, ok=False, own_fault=own_fault)
            raise
        else:
            self._succeeded += 1
            self._monitor.observe(time() - from_s, ok=True)
            return completion
        finally:
            lease.release()
            self._in_flight -= 1
            if self._in_flight == 0 and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls and wait, at most `limit_s`, for those in flight. True when none is left."""
        self._draining = True
        if self._in_flight:
            if self._idle is None:
                self._idle = self._loop.create_future()
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.shield(self._idle)
            except TimeoutError:
                return self._in_flight == 0
        return True

    def metrics(self, *, cpu_usage: float = 0.0, memory_usage: float = 0.0) -> InstanceMetrics:
        """The report for a heartbeat; usages are fractions of 1, measured by the caller."""
        return self._monitor.snapshot(
            self._loop.time(),
            cpu_usage=cpu_usage,
            memory_usage=memory_usage,
            in_flight=self._in_flight,
            capacity=self.concurrency,
            weight=self.weight,
        )

    def sample(self, *, origin_s: float = 0.0) -> StationSample:
        """The slots' interval since the last sample; `origin_s` is the run's start on the loop's clock."""
        return self._slots.sample(origin_s=origin_s)

    def statistics(self) -> InstanceStatistics:
        return InstanceStatistics(
            instance_id=self.instance_id,
            draining=self._draining,
            in_flight=self._in_flight,
            admitted=self._succeeded + self._failed + self._cancelled + self._in_flight,
            succeeded=self._succeeded,
            failed=self._failed,
            cancelled=self._cancelled,
            rejected=self._rejected,
            refused=self._refused,
            slots=self._slots.statistics(),
        )

    async def aclose(self) -> None:
        """Close the processor; calls in flight are for `drain` to wait for."""
        await self._processor.aclose()
