"""Message batches of a run: what became of each, when it was done, and what it cost.

Nobody waits for a request of a batch, so its rows are in none of the figures of latency, goodput or promises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.run import Run
from simulation.scenario.compiled_batches import place_of

__all__ = ["BatchOutcome", "batch_outcomes"]


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """One batch.

    Attributes:
        number: its place in the scenario's list. tenant, model: whose, and which.
        requests: how many; outcomes: of them, by outcome.
        submitted_s: when it was submitted first. done_s: when its last result was recorded; NaN while one is missing.
        rate_per_s: results over the time until the last of them.
        queue_wait_s: mean wait in the queue. cost_usd: dollars. wasted_calls: upstream calls beyond the first of a request.
    """

    number: int
    tenant: str
    model: str
    requests: int
    outcomes: Mapping[str, int]
    submitted_s: float
    done_s: float
    rate_per_s: float
    queue_wait_s: float
    cost_usd: float
    wasted_calls: int

    @property
    def took_s(self) -> float:
        """From submission to the last result; NaN while one is missing."""
        return self.done_s - self.submitted_s

    @property
    def unfinished(self) -> int:
        return self.outcomes.get("unfinished", 0)

    @property
    def succeeded(self) -> int:
        return self.outcomes.get("ok", 0)


def batch_outcomes(run: Run) -> list[BatchOutcome]:
    """The batches of a run, in the scenario's order."""
    frame = run.batches
    numbers = np.array([place_of(request_id)[0] for request_id in frame["request_id"].tolist()])
    return [_outcome(number, frame[numbers == number]) for number in np.unique(numbers).tolist()]


def _outcome(number: int, rows: pd.DataFrame) -> BatchOutcome:
    recorded = rows[rows["finished"]]
    submitted_s = float(rows["sent_s"].min())
    last_s = float(recorded["done_s"].max()) if len(recorded) else math.nan
    span_s = last_s - submitted_s
    return BatchOutcome(
        number=number,
        tenant=str(rows["tenant"].iloc[0]),
        model=str(rows["model"].iloc[0]),
        requests=len(rows),
        outcomes={str(k): int(v) for k, v in rows["outcome"].value_counts().items()},
        submitted_s=submitted_s,
        done_s=last_s if len(recorded) == len(rows) else math.nan,
        rate_per_s=len(recorded) / span_s if span_s > 0 else math.nan,
        queue_wait_s=float(rows["queue_wait_s"].mean()),
        cost_usd=float(rows["cost_usd"].sum()),
        wasted_calls=int((rows["attempts"] - 1).clip(lower=0).sum()),
    )
