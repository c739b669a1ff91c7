"""Recorded traces of LLM requests, told apart by their columns.

- Azure LLM inference 2023 and 2024: `TIMESTAMP,ContextTokens,GeneratedTokens` (date and time with up to nine digits).
- BurstGPT: `Timestamp,...,Request tokens,Response tokens,...` (seconds), with `Session ID` in newer files.
- Mooncake: JSON lines with `timestamp` (milliseconds), `input_length`, `output_length`, `hash_ids`.

Times count from the first row. Counts of 0 (failed requests in BurstGPT) become 1. A line that cannot be read, or whose
time is before the line above it, is an error that names the line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from simulation.scenario.arrival_spec import TraceArrivals
from simulation.scenario.diagnosis import is_name
from simulation.scenario.distributions import Floats
from simulation.scenario.errors import TraceError

__all__ = ["Ints", "Trace", "read_trace", "slice_trace"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """Columns of a trace, one row a request, in order of time.

    `arrival_s` counts from the first row. `session`: the trace's own session, -1 without. `prompt`: rows with equal
    numbers asked the same (Mooncake: equal `hash_ids`), None where the trace cannot tell.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    session: Ints
    prompt: Ints | None


def read_trace(path: str | Path) -> Trace:
    """Read a whole trace file; raises TraceError."""
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            if first.lstrip().startswith("{"):
                return _mooncake(file, lines.read().splitlines())
            return _csv(file, list(csv.reader(lines)))
    except FileNotFoundError:
        raise TraceError(f"{file}: no such trace file") from None
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TraceError(f"{file}: not a text file (byte {error.start} is not UTF-8)") from None
    except csv.Error as error:
        raise TraceError(f"{file}: not a CSV file: {error}") from None


def slice_trace(trace: Trace, spec: TraceArrivals) -> Trace:
    """The window, limit and speed of `spec`; raises TraceError where nothing is left."""
    begin = int(np.searchsorted(trace.arrival_s, spec.start_s, side="left"))
    end = len(trace.arrival_s)
    if spec.end_s is not None:
        end = int(np.searchsorted(trace.arrival_s, spec.end_s, side="left"))
    if spec.limit is not None:
        end = min(end, begin + spec.limit)
    if begin >= end:
        raise TraceError(
            f"{spec.path}: no request between start_s {spec.start_s:g} and end_s "
            f"{'the end' if spec.end_s is None else f'{spec.end_s:g}'}; "
            f"the trace runs from 0 to {trace.arrival_s[-1]:.1f} s"
        )
    kept = slice(begin, end)
    return Trace(
        arrival_s=(trace.arrival_s[kept] - spec.start_s) / spec.speed,
        input_tokens=trace.input_tokens[kept],
        output_tokens=trace.output_tokens[kept],
        session=trace.session[kept],
        prompt=None if trace.prompt is None else trace.prompt[kept],
    )


def _csv(file: Path, rows: list[list[str]]) -> Trace:
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if {"timestamp", "contexttokens", "generatedtokens"} <= set(header):
        names, read_times = ("timestamp", "contexttokens", "generatedtokens"), _dates
    elif {"timestamp", "request tokens", "response tokens"} <= set(header):
        names, read_times = ("timestamp", "request tokens", "response tokens"), _seconds
    else:
        columns = ", ".join(header)[:80]
        shown = (columns if is_name(columns) else "(not shown)") or "(none)"
        raise TraceError(
            f"{file}: line 1: columns {shown} are no known trace; expected "
            "TIMESTAMP,ContextTokens,GeneratedTokens (Azure), Timestamp,Request tokens,Response tokens (BurstGPT) or "
            "JSON lines with timestamp,input_length,output_length (Mooncake)"
        )
    numbered = [(i, row) for i, row in enumerate(rows[1:], start=2) if row]
    for i, row in numbered:
        if len(row) != len(header):
            raise TraceError(f"{file}: line {i}: {len(row)} fields, expected {len(header)}")
    lines = [i for i, _ in numbered]
    times, inputs, outputs = (
        [row[column] for _, row in numbered] for column in (header.index(name) for name in names)
    )
    session = np.full(len(lines), -1, dtype=np.int64)
    if "session id" in header:
        column = header.index("session id")
        _, session = np.unique([row[column] for _, row in numbered], return_inverse=True)
    return _trace(
        file,
        lines,
        _convert(file, lines, rows[0][header.index(names[0])], times, read_times),
        _convert(file, lines, rows[0][header.index(names[1])], inputs, _counts),
        _convert(file, lines, rows[0][header.index(names[2])], outputs, _counts),
        session.astype(np.int64),
        None,
    )


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def _mooncake(file: Path, text: list[str]) -> Trace:
    decode = msgspec.json.Decoder(_MooncakeLine).decode
    rows: list[_MooncakeLine] = []
    lines: list[int] = []
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            rows.append(decode(line))
        except msgspec.MsgspecError as error:
            raise TraceError(
                f"{file}: line {number}: {error}; expected timestamp, input_length, output_length, hash_ids"
            ) from None
        lines.append(number)
    prompts: dict[tuple[object, ...], int] = {}
    prompt = [
        prompts.setdefault((row.input_length, *(row.hash_ids or ("line", i))), len(prompts))
        for i, row in enumerate(rows)
    ]
    times = np.array([row.timestamp / 1000 for row in rows], dtype=np.float64)
    inputs = [row.input_length for row in rows]
    outputs = [row.output_length for row in rows]
    return _trace(
        file,
        lines,
        times,
        _convert(file, lines, "input_length", inputs, _counts),
        _convert(file, lines, "output_length", outputs, _counts),
        np.full(len(rows), -1, dtype=np.int64),
        np.array(prompt, dtype=np.int64),
    )


def _dates(values: Sequence[Any]) -> Floats:
    nanoseconds = np.array(values, dtype="datetime64[ns]").astype(np.int64)
    return np.asarray((nanoseconds - nanoseconds[:1]) / 1e9, dtype=np.float64)


def _seconds(values: Sequence[Any]) -> Floats:
    seconds = np.array(values, dtype=np.float64)
    if not np.isfinite(seconds).all():
        raise ValueError("not finite")
    return seconds


def _counts(values: Sequence[Any]) -> Floats:
    counts = np.array(values, dtype=np.float64)
    if not ((counts >= 0) & (counts <= 1e8) & (counts == np.rint(counts))).all():
        raise ValueError("not a count")
    return counts


def _convert(
    file: Path,
    lines: list[int],
    name: str,
    values: Sequence[Any],
    read: Callable[[Sequence[Any]], Floats],
) -> Floats:
    """A column at once; only when that fails, value by value to find the line."""
    try:
        return read(values)
    except (ValueError, OverflowError):
        for line, value in zip(lines, values, strict=True):
            try:
                read([value])
            except (ValueError, OverflowError):
                kind = "a count of tokens" if read is _counts else "a time"
                raise TraceError(
                    f"{file}: line {line}: {name} {str(value)[:40]!r} is not {kind}"
                ) from None
        raise


def _trace(
    file: Path,
    lines: list[int],
    times: Floats,
    inputs: Floats,
    outputs: Floats,
    session: Ints,
    prompt: Ints | None,
) -> Trace:
    if not lines:
        raise TraceError(f"{file}: no request in it")
    backwards = np.flatnonzero(np.diff(times) < 0)
    if len(backwards):
        row = int(backwards[0]) + 1
        raise TraceError(
            f"{file}: line {lines[row]}: time goes back by {times[row - 1] - times[row]:.3f} s; "
            "sort the trace by time"
        )
    return Trace(
        arrival_s=times - times[0],
        input_tokens=np.maximum(inputs, 1).astype(np.int64),
        output_tokens=np.maximum(outputs, 1).astype(np.int64),
        session=session,
        prompt=prompt,
    )
