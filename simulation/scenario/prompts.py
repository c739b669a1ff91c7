"""From a row of the compiled workload to what travels: text, the Messages body, its size, its cache key.

The workload holds ids and token counts only. A live injector makes the body of a row when it sends it; in virtual time
nobody needs text, only its size and the key under which a cache would know it, which is the very key that the live
gateway computes from the live body. Text is about four bytes a token (`BYTES_PER_TOKEN`, the usual rule for English).
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from simulation.scenario.compiled_workload import CompiledWorkload

__all__ = [
    "BYTES_PER_TOKEN",
    "prompt_text",
    "request_body",
    "request_size_bytes",
    "virtual_key",
]

BYTES_PER_TOKEN: Final = 4
# Plain ASCII without quotes, backslashes or control characters: its JSON has the same bytes.
_SENTENCE: Final = (
    "The quick sort of a long list takes time in proportion to its length times the logarithm of that length, "
    "and a queue before a busy server grows without bound when requests come faster than they are answered. "
)
_FILLER: Final = _SENTENCE * 256


def prompt_text(prompt_id: int, tokens: int) -> str:
    """The text of a prompt: begins with its id, about four bytes a token, the same for the same arguments."""
    return _text("prompt", prompt_id, tokens)


def _text(what: str, number: int, tokens: int) -> str:
    head = f"{what} {number}: "
    room = BYTES_PER_TOKEN * tokens - len(head)
    if room <= 0:
        return head
    if room > len(_FILLER):
        return head + (_FILLER * (room // len(_FILLER) + 1))[:room]
    return head + _FILLER[:room]


def _text_bytes(what: str, number: int, tokens: int) -> int:
    return max(BYTES_PER_TOKEN * tokens, len(what) + len(str(number)) + 3)


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


def request_size_bytes(workload: CompiledWorkload, row: int) -> int:
    """`len(request_body(workload, row))`, without making it."""
    frame = len('{"max_tokens":,"messages":[],"model":,"stream":}')
    message = len('{"content":"","role":"user"}')
    size = frame + len(str(int(workload.max_tokens[row])))
    size += len(msgspec.json.encode(workload.models[workload.model[row]]))
    size += 4 if workload.stream[row] else 5
    context = int(workload.context_tokens[row])
    own = int(workload.input_tokens[row]) - context
    size += message + _text_bytes("prompt", int(workload.prompt_id[row]), own)
    if context:
        for earlier in range(row - int(workload.turn[row]), row):
            number = int(workload.prompt_id[earlier])
            added = int(workload.input_tokens[earlier]) - int(workload.context_tokens[earlier])
            size += message + _text_bytes("prompt", number, added) + 1
            size += message + len("assistant") - len("user") + 1
            size += _text_bytes("answer", number, int(workload.output_tokens[earlier]))
    return size


def virtual_key(workload: CompiledWorkload, row: int) -> str:
    """`reference_impl.messages.content_key` of the call that a live gateway builds from this row's body.

    Remembered for prompts that come again; the others are asked for once.
    """
    if not workload.repeats_prompt[row]:
        return _content_key(workload, row)
    what = (
        int(workload.prompt_id[row]),
        int(workload.input_tokens[row]),
        int(workload.model[row]),
        int(workload.tenant[row]),
        int(workload.max_tokens[row]),
    )
    key = workload.known_keys.get(what)
    if key is None:
        key = workload.known_keys[what] = _content_key(workload, row)
    return key


def _content_key(workload: CompiledWorkload, row: int) -> str:
    canonical = msgspec.json.encode(
        {
            "max_tokens": int(workload.max_tokens[row]),
            "messages": _messages(workload, row),
            "model": workload.models[workload.model[row]],
        }
    )
    digest = hashlib.blake2b(digest_size=16)
    digest.update(workload.tenants[workload.tenant[row]].encode())
    digest.update(b"\x00")
    digest.update(canonical)
    return digest.hexdigest()
