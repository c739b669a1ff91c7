"""Which injector sends what: every arrival exactly once, and a session always from the same one."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["rows_of_injector"]


def rows_of_injector(session_id: NDArray[np.int64], injector: int, injectors: int) -> list[int]:
    """The rows of a compiled workload that injector `injector` of `injectors` sends, in order.

    Single requests (session -1) are dealt out in turn, so that each injector carries an even share of every burst.
    Sessions go by crc32 of their number, because later turns depend on earlier ones (the built-in hash of text is
    salted per process). Raises ValueError unless 0 <= injector < injectors.
    """
    if not 0 <= injector < injectors:
        raise ValueError(f"injector {injector} of {injectors}: expected 0 <= injector < injectors")
    singles = np.flatnonzero(session_id < 0)[injector::injectors]
    in_session = np.flatnonzero(session_id >= 0)
    mine = [
        row
        for row, session in zip(in_session.tolist(), session_id[in_session].tolist(), strict=True)
        if zlib.crc32(str(session).encode()) % injectors == injector
    ]
    return sorted([*singles.tolist(), *mine])
