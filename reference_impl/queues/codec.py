"""Tasks as bytes: JSON, so that other languages can produce and read them."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from reference_impl.queues.errors import InvalidTask, TaskTooLarge
from reference_impl.queues.port import QueuedTask

__all__ = ["COUNTS_BYTES", "MAX_TASK_BYTES", "decode_task", "encode_task"]

MAX_TASK_BYTES = 4 * 1024 * 1024
# What its counts and instants may add to a task that fitted once.
COUNTS_BYTES = 1024

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(QueuedTask).decode


def encode_task(task: QueuedTask, max_bytes: int = MAX_TASK_BYTES) -> bytes:
    """Raises InvalidTask where JSON cannot say the payload, TaskTooLarge beyond `max_bytes`."""
    try:
        data = _encode(task)
        if data.find(b"null") >= 0 and _has_no_json_number(task.payload):
            raise ValueError("NaN and infinity have no JSON number")
    except RecursionError as error:
        raise InvalidTask(
            f"task {task.task_id!r}: its payload is not JSON that can be read again: it is nested too deeply; flatten it"
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTask(f"task {task.task_id!r}: its payload is not JSON: {error}") from error
    if len(data) > max_bytes:
        raise TaskTooLarge(
            f"task {task.task_id!r} has {len(data)} bytes, the queue takes {max_bytes}: store the bulk elsewhere and "
            "enqueue a reference"
        )
    return data


def decode_task(data: bytes) -> QueuedTask:
    """Raises InvalidTask that names the missing or wrong field, and nothing else, whatever the bytes.

    How deeply a payload may be nested depends on the interpreter's stack: what was encoded may be too deep where it arrives.
    """
    try:
        return _decode(data)
    except RecursionError as error:
        raise InvalidTask("not a task: its payload is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidTask(f"not a task: {error}") from error


def _has_no_json_number(value: Any) -> bool:
    """msgspec writes NaN and infinity as null; nobody would notice."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_no_json_number(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_has_no_json_number(part) for part in value)
    return False
