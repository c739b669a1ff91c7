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
_fields = msgspec.structs.astuple


def encode_task(task: QueuedTask, max_bytes: int = MAX_TASK_BYTES) -> bytes:
    """Raises InvalidTask where a field has a wrong type or JSON cannot say it, TaskTooLarge beyond `max_bytes`."""
    try:
        data = _encode(task)
        if not _has_plain_types(task):
            _check(task, data)
        if data.find(b"null") >= 0 and _has_no_json_number(
            (task.payload, task.enqueued_s, task.deadline_s)
        ):
            raise ValueError("NaN and infinity have no JSON number")
    except RecursionError as error:
        raise InvalidTask(
            f"task {task.task_id!r} is not JSON that can be read again: its payload is nested too deeply; flatten it"
        ) from error
    except msgspec.ValidationError as error:
        raise InvalidTask(f"task {task.task_id!r}: {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTask(f"task {task.task_id!r} is not JSON: {error}") from error
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


def _has_plain_types(task: QueuedTask) -> bool:
    """Whether its fields surely hold what decoding gives: by exact types, and quickly, because every task comes through here."""
    (
        task_id,
        task_type,
        _,
        priority,
        retry_count,
        max_retries,
        enqueued_s,
        deadline_s,
        idempotency_key,
        trace_context,
        redeliveries,
        earlier_attempts,
    ) = _fields(task)
    return (
        type(task_id) is str
        and type(task_type) is str
        and type(priority) is int
        and type(retry_count) is int
        and type(max_retries) is int
        and (enqueued_s is None or type(enqueued_s) is float)
        and (deadline_s is None or type(deadline_s) is float)
        and type(idempotency_key) is str
        and type(trace_context) is dict
        and (not trace_context or all(type(text) is str for text in trace_context.values()))
        and type(redeliveries) is int
        and type(earlier_attempts) is int
    )


def _check(task: QueuedTask, data: bytes) -> None:
    """The slow way: an enumeration's member is a number too, and bytes are written as a text that is another."""
    read = _decode(data)
    if msgspec.structs.replace(read, payload=task.payload) != task:
        raise msgspec.ValidationError("a field would arrive as something else: give it its type")


def _has_no_json_number(value: Any) -> bool:
    """msgspec writes NaN and infinity as null; nobody would notice."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_no_json_number(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_has_no_json_number(part) for part in value)
    return False
