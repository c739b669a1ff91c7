"""What is observed: the records of a run, the same in both worlds."""

from reference_impl.telemetry.records import (
    CACHE_RESULTS,
    OUTCOMES,
    STAGES,
    CacheResult,
    Outcome,
    RequestRecord,
    RequestTrace,
    StationSample,
    SystemEvent,
)

__all__ = [
    "CACHE_RESULTS",
    "OUTCOMES",
    "STAGES",
    "CacheResult",
    "Outcome",
    "RequestRecord",
    "RequestTrace",
    "StationSample",
    "SystemEvent",
]
