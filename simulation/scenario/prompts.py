"""From a row of the compiled workload to what travels: text, the Messages body, its size, its cache key.

The workload holds ids and token counts only. A live injector makes the body of a row when it sends it; in virtual time
nobody needs text, only its size and the key under which a cache would know it, which is the very key that the live
gateway computes from the live body. Text is about four bytes a token (`BYTES_PER_TOKEN`, the usual rule for English).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from reference_impl.batches.port import BatchRequest
from reference_impl.messages import RequestTag
from simulation.scenario.compiled_batches import CompiledBatch
from simulation.scenario.compiled_workload import CompiledWorkload
from simulation.scenario.traces import Ints

__all__ = [
    "BYTES_PER_TOKEN",
    "MAX_BATCH_BYTES",
    "batch_requests",
    "batch_size_bytes",
    "prompt_number",
    "prompt_text",
    "request_body",
    "request_size_bytes",
    "request_sizes_bytes",
    "virtual_key",
]

BYTES_PER_TOKEN: Final = 4
# The Message Batches API's own limit.
MAX_BATCH_BYTES: Final = 256 * 1024 * 1024
# Of a request in a batch, beyond its text: its custom id, names of fields, model.
_BATCH_FRAME_BYTES: Final = 512
# Plain ASCII without quotes, backslashes or control characters: its JSON has the same bytes.
_SENTENCE: Final = (
    "The quick sort of a long list takes time in proportion to its length times the logarithm of that length, "
    "and a queue before a busy server grows without bound when requests come faster than they are answered. "
)
_FILLER: Final = _SENTENCE * 256
_POWERS_OF_TEN: Final = 10 ** np.arange(1, 19, dtype=np.int64)


def prompt_text(prompt_id: int, tokens: int) -> str:
    """The text of a prompt: begins with its id, about four bytes a token, the same for the same arguments."""
    return _text("prompt", prompt_id, tokens)


def prompt_number(text: str) -> int:
    """The id of the prompt whose `prompt_text` this is. Raises ValueError for any other text."""
    return int(text.removeprefix("prompt ").partition(":")[0])


def _text(what: str, number: int, tokens: int) -> str:
    head = f"{what} {number}: "
    room = BYTES_PER_TOKEN * tokens - len(head)
    if room <= 0:
        return head
    if room > len(_FILLER):
        return head + (_FILLER * (room // len(_FILLER) + 1))[:room]
    return head + _FILLER[:room]


def _messages(workload: CompiledWorkload, row: int) -> list[dict[str, str]]:
    """The conversation up to this row, keys in sorted order."""
    prompt = int(workload.prompt_id[row])
    context = int(workload.context_tokens[row])
    own = {
        "content": prompt_text(prompt, int(workload.input_tokens[row]) - context),
        "role": "user",
    }
    if context == 0:
        return [own]
    messages: list[dict[str, str]] = []
    for earlier in range(row - int(workload.turn[row]), row):
        number = int(workload.prompt_id[earlier])
        added = int(workload.input_tokens[earlier]) - int(workload.context_tokens[earlier])
        answer = int(workload.output_tokens[earlier])
        messages.append({"content": prompt_text(number, added), "role": "user"})
        messages.append({"content": _text("answer", number, answer), "role": "assistant"})
    messages.append(own)
    return messages


def request_body(workload: CompiledWorkload, row: int) -> bytes:
    """The Messages request of `row` as JSON: one user message, or the conversation so far."""
    return msgspec.json.encode(
        {
            "max_tokens": int(workload.max_tokens[row]),
            "messages": _messages(workload, row),
            "model": workload.models[workload.model[row]],
            "stream": bool(workload.stream[row]),
        }
    )


def batch_requests(batch: CompiledBatch) -> list[BatchRequest]:
    """The requests of a batch as they are submitted: its text live and in virtual time, since the store keeps it either way.

    Their custom ids are their tags. No prompt is asked twice: its number is the request's id.
    """
    sizes = zip(batch.input_tokens.tolist(), batch.output_tokens.tolist(), strict=True)
    return [
        BatchRequest(
            RequestTag(
                number, prompt_id=number, input_tokens=inputs, output_tokens=outputs
            ).custom_id(),
            msgspec.Raw(
                msgspec.json.encode(
                    {
                        "max_tokens": batch.max_tokens,
                        "messages": [{"content": prompt_text(number, inputs), "role": "user"}],
                        "model": batch.model,
                    }
                )
            ),
        )
        for number, (inputs, outputs) in enumerate(sizes, start=batch.first_id)
    ]


def batch_size_bytes(batch: CompiledBatch) -> int:
    """About the size of the body that submits a batch, and no less."""
    text = BYTES_PER_TOKEN * int(batch.input_tokens.astype(np.int64).sum())
    return text + _BATCH_FRAME_BYTES * len(batch)


def request_size_bytes(workload: CompiledWorkload, row: int) -> int:
    """`len(request_body(workload, row))`, without making it."""
    return int(request_sizes_bytes(workload, np.array([row]))[0])


def request_sizes_bytes(workload: CompiledWorkload, rows: Ints) -> Ints:
    """`len(request_body(workload, row))` of each of `rows`, without making them."""
    frame = len('{"max_tokens":,"messages":[],"model":,"stream":}')
    models = np.array([len(msgspec.json.encode(model)) for model in workload.models])
    context = workload.context_tokens[rows]
    own = workload.input_tokens[rows] - context
    sizes: Ints = (
        frame
        + _digits(workload.max_tokens[rows])
        + models[workload.model[rows]]
        + np.where(workload.stream[rows], len("true"), len("false"))
        + _message_bytes("user", "prompt", workload.prompt_id[rows], own)
    )
    for place in np.flatnonzero(context):
        row = int(rows[place])
        turns = np.arange(row - int(workload.turn[row]), row)
        numbers = workload.prompt_id[turns]
        added = workload.input_tokens[turns] - workload.context_tokens[turns]
        answers = workload.output_tokens[turns]
        commas = 2 * len(turns)
        sizes[place] += commas + int(
            np.sum(_message_bytes("user", "prompt", numbers, added))
            + np.sum(_message_bytes("assistant", "answer", numbers, answers))
        )
    return sizes


def _message_bytes(role: str, what: str, numbers: Ints, tokens: npt.NDArray[np.int32]) -> Ints:
    """The size of messages whose text is `_text(what, number, tokens)`."""
    frame = len('{"content":"","role":""}') + len(role)
    head = len(f"{what} : ") + _digits(numbers)
    return frame + np.maximum(BYTES_PER_TOKEN * tokens.astype(np.int64), head)


def _digits(numbers: npt.NDArray[Any]) -> Ints:
    """How many digits each non-negative number has."""
    return np.searchsorted(_POWERS_OF_TEN, numbers, side="right") + 1


def virtual_key(workload: CompiledWorkload, row: int) -> str:
    """`reference_impl.messages.content_key` of the call that a live gateway builds from this row's body.

    Remembered for prompts that come again; the others are asked for once.
    """
    if not workload.repeats_prompt.item(row):
        return _content_key(workload, row)
    what = (
        workload.prompt_id.item(row),
        workload.input_tokens.item(row),
        workload.model.item(row),
        workload.tenant.item(row),
        workload.max_tokens.item(row),
    )
    key = workload.known_keys.get(what)
    if key is None:
        key = workload.known_keys[what] = _content_key(workload, row)
    return key


def _content_key(workload: CompiledWorkload, row: int) -> str:
    model, tenant = workload.model.item(row), workload.tenant.item(row)
    max_tokens = workload.max_tokens.item(row)
    if workload.context_tokens.item(row):
        digest = hashlib.blake2b(workload.tenants[tenant].encode() + b"\0", digest_size=16)
        digest.update(
            msgspec.json.encode(
                {
                    "max_tokens": max_tokens,
                    "messages": _messages(workload, row),
                    "model": workload.models[model],
                }
            )
        )
        return digest.hexdigest()
    # One prompt, the usual case, which the speed of a simulation depends on: the same bytes, piece by piece.
    before, after = _single_prompt_frame(
        workload.tenants[tenant], max_tokens, workload.models[model]
    )
    digest = before.copy()
    text = prompt_text(workload.prompt_id.item(row), workload.input_tokens.item(row))
    digest.update(text.encode())
    digest.update(after)
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _single_prompt_frame(tenant: str, max_tokens: int, model: str) -> tuple[hashlib.blake2b, bytes]:
    """What is digested before the text of a request's one message, and the bytes after it."""
    before = hashlib.blake2b(
        b'%b\0{"max_tokens":%d,"messages":[{"content":"' % (tenant.encode(), max_tokens),
        digest_size=16,
    )
    return before, b'","role":"user"}],"model":%b}' % msgspec.json.encode(model)
