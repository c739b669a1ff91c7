"""Faults on purpose: drawn from the seed by the profile, or ordered by a request's header.

A fault is decided once, when a call arrives, and looks the same in process and over HTTP: an error of the tree before the
first event, or a stream that ends early.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import get_args

import msgspec

from reference_impl.errors import InvalidRequest, ServiceError, StreamBroken, error_for_status
from simulation.scenario.endpoint import FaultKind, FaultSpec

__all__ = ["FAULT_HEADER", "Fault", "FaultOrder", "Faults", "StreamCut", "raise_status"]

FAULT_HEADER = "x-mock-fault"

_KINDS: frozenset[str] = frozenset(get_args(FaultKind))
_MAX_KEYS = 100_000


class StreamCut(StreamBroken):
    """The connection itself is lost in the middle of the answer."""


class Fault(msgspec.Struct, frozen=True):
    """What befalls one attempt."""

    kind: FaultKind
    retry_after_s: float | None = None
    factor: float = 10.0


class FaultOrder(msgspec.Struct, frozen=True):
    """A fault that a request asked for: the first `times` requests with the same `key` get it (0: all)."""

    fault: Fault
    times: int = 0
    key: str = ""

    @classmethod
    def decode(cls, text: str) -> FaultOrder:
        """Parse `kind=529;times=2;key=abc;retry_after=1.5`; raises InvalidRequest that names the offending part."""
        fields: dict[str, str] = {}
        for part in text.split(";"):
            name, equals, value = part.strip().partition("=")
            if name not in ("kind", "times", "key", "retry_after", "factor") or not equals:
                raise InvalidRequest(
                    f"{FAULT_HEADER}: bad part {part.strip()[:40]!r}: "
                    "expected kind|times|key|retry_after|factor=<value>"
                )
            fields[name] = value
        kind = fields.get("kind", "")
        if kind not in _KINDS:
            raise InvalidRequest(
                f"{FAULT_HEADER}: kind {kind[:40]!r} is not one of {', '.join(sorted(_KINDS))}"
            )
        retry_after = fields.get("retry_after")
        try:
            fault = msgspec.convert(
                {
                    "kind": kind,
                    "retry_after_s": None if retry_after is None else float(retry_after),
                    "factor": float(fields.get("factor", "10")),
                },
                Fault,
            )
            times = int(fields.get("times", "0"))
        except ValueError as error:
            raise InvalidRequest(f"{FAULT_HEADER}: {error}") from error
        if times < 0 or not 1.0 <= fault.factor <= 10_000.0:
            raise InvalidRequest(f"{FAULT_HEADER}: times must be >= 0 and factor 1 to 10000")
        if fault.retry_after_s is not None and not 0.0 <= fault.retry_after_s <= 86_400.0:
            raise InvalidRequest(f"{FAULT_HEADER}: retry_after must be 0 to 86400 seconds")
        return cls(fault, times, fields.get("key", ""))


class Faults:
    """Decides which attempt meets which fault."""

    def __init__(self, specs: Sequence[FaultSpec], speedup: float) -> None:
        self._specs = specs
        self._speedup = speedup
        self._used: OrderedDict[str, int] = OrderedDict()

    def ordered(self, order: FaultOrder) -> Fault | None:
        """The fault of this request, or None when the order is used up."""
        if order.times == 0:
            return order.fault
        name = f"{order.fault.kind};{order.times};{order.key}"
        used = self._used.pop(name, 0)
        self._used[name] = used + 1
        if len(self._used) > _MAX_KEYS:
            self._used.popitem(last=False)
        return order.fault if used < order.times else None

    def drawn(self, luck: float, elapsed_s: float) -> Fault | None:
        """The fault that falls to this uniform, `elapsed_s` after the endpoint's start."""
        elapsed_s *= self._speedup
        for spec in self._specs:
            if spec.from_s <= elapsed_s and (spec.until_s is None or elapsed_s < spec.until_s):
                if luck < spec.probability:
                    return Fault(spec.kind, spec.retry_after_s, spec.factor)
                luck -= spec.probability
        return None


_MESSAGES = {
    "400": "the request was refused on purpose",
    "401": "invalid x-api-key",
    "403": "your API key does not have permission to use this resource",
    "404": "not found, on purpose",
    "413": "the request exceeds the maximum size",
    "429": "this request would exceed your rate limit",
    "529": "Overloaded",
}


def raise_status(fault: Fault) -> None:
    """Raise the error of a fault that is an HTTP status; return for any other."""
    if not fault.kind.isdecimal():
        return
    status = int(fault.kind)
    error: ServiceError = error_for_status(
        status,
        _MESSAGES.get(fault.kind, "Internal server error"),
        retry_after_s=fault.retry_after_s,
    )
    raise error
