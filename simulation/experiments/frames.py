"""Rows of results as data frames, and as Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulation.experiments.measuring import Row
from simulation.statistics import mean_interval

__all__ = ["frame_of", "summarise", "write_parquet"]


def frame_of(labels: Iterable[Mapping[str, object]], rows: Sequence[Row]) -> pd.DataFrame:
    """One row a run: first what was set (`labels`), then what was found. Missing numbers are NaN.

    A value that is no number, text or truth (a list, a group of fields) is shown as text.
    """
    merged = [
        {**{name: _cell(v) for name, v in label.items()}, **row}
        for label, row in zip(labels, rows, strict=True)
    ]
    frame = pd.DataFrame(merged)
    for column in frame.columns:
        if frame[column].isna().all():
            frame[column] = frame[column].astype(np.float64)
    return frame


def summarise(
    frame: pd.DataFrame, by: Sequence[str], metrics: Sequence[str], confidence: float = 0.95
) -> pd.DataFrame:
    """One row for each combination of `by`: the mean of each metric over its runs, with the interval's ends.

    Columns `M`, `M low`, `M high` (NaN for a single run), `runs`, `unstable` (of them).
    """
    found: list[dict[str, Any]] = []
    groups = frame.groupby(list(by), sort=False, dropna=False) if by else [((), frame)]
    for values, runs in groups:
        line: dict[str, Any] = dict(zip(by, values, strict=True))
        line["runs"] = len(runs)
        line["unstable"] = int((runs["status"] == "unstable").sum())
        for metric in metrics:
            sample = runs[metric].to_numpy(dtype=np.float64)
            sample = sample[~np.isnan(sample)]
            line[metric] = float(sample.mean()) if len(sample) else np.nan
            low = high = np.nan
            if len(sample) > 1:
                interval = mean_interval(sample, confidence)
                low, high = interval.low, interval.high
            line[f"{metric} low"], line[f"{metric} high"] = low, high
        found.append(line)
    return pd.DataFrame(found)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Columns of mixed kinds (a field that takes numbers and names) are written as text."""
    copy = frame.copy()
    for column in copy.columns:
        if copy[column].map(type).nunique() > 1:
            copy[column] = copy[column].map(str)
    copy.to_parquet(path, index=False)


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
