"""An answer as bytes: the message as JSON, or server-sent events in the order and shape that official clients expect."""

from __future__ import annotations

from typing import Any

import msgspec

from simulation.models.endpoint.answer import Answer, Block
from simulation.models.endpoint.tokens import BYTES_PER_TOKEN

__all__ = [
    "TokenCounts",
    "error_body",
    "error_event",
    "message_body",
    "message_size",
    "stream_chunks",
    "stream_size",
]

_encode = msgspec.json.encode
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class TokenCounts(msgspec.Struct, frozen=True):
    """Input tokens by where they came from."""

    uncached: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    @property
    def written(self) -> int:
        return self.written_5m + self.written_1h

    @property
    def total(self) -> int:
        return self.uncached + self.read + self.written_5m + self.written_1h


def _usage(
    counts: TokenCounts, output_tokens: int, thinking_tokens: int, tier: str = "standard"
) -> dict[str, Any]:
    return {
        "input_tokens": counts.uncached,
        "cache_creation_input_tokens": counts.written,
        "cache_read_input_tokens": counts.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": counts.written_5m,
            "ephemeral_1h_input_tokens": counts.written_1h,
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
        "service_tier": tier,
    }


def _signature(block: Block) -> str:
    """Opaque to clients, and never empty."""
    return f"mock-signature-{block.tokens}"


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": block.text, "signature": _signature(block)}
    if block.kind == "tool_use":
        return {
            "type": "tool_use",
            "id": block.tool_id,
            "name": block.tool_name,
            "input": msgspec.Raw(block.text.encode()),
        }
    return {"type": "text", "text": block.text}


def _empty_content(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "tool_use":
        return {"type": "tool_use", "id": block.tool_id, "name": block.tool_name, "input": {}}
    return {"type": "text", "text": ""}


def message_body(
    message_id: str, model: str, answer: Answer, counts: TokenCounts, tier: str = "standard"
) -> bytes:
    """The message that a client receives which did not ask for a stream."""
    return _encode(
        {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [_content(block) for block in answer.blocks],
            "stop_reason": answer.stop_reason,
            "stop_sequence": answer.stop_sequence,
            "usage": _usage(counts, answer.output_tokens, answer.thinking_tokens, tier),
        }
    )


# Bytes around the text, with a typical id, model and counts: of a message, of a stream, of one of its chunks.
_MESSAGE_BYTES = 480
_STREAM_BYTES = 1_250
_CHUNK_BYTES = 113


def message_size(output_tokens: int) -> int:
    """Size of a text answer where there is no body: close to `message_body`'s."""
    return _MESSAGE_BYTES + BYTES_PER_TOKEN * output_tokens


def stream_size(output_tokens: int, chunks: int) -> int:
    """Size of a streamed text answer where there is no body: close to that of `stream_chunks`."""
    return _STREAM_BYTES + _CHUNK_BYTES * chunks + BYTES_PER_TOKEN * output_tokens


def _event(name: str, document: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode(document))


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _block_chunks(block: Block, index: int, chunk_tokens: int) -> list[tuple[int, bytes]]:
    """(tokens of the block that are out, events) for each piece of it."""
    start = _empty_content(block)
    opening = _event(
        "content_block_start",
        {"type": "content_block_start", "index": index, "content_block": start},
    )
    closing = _event("content_block_stop", {"type": "content_block_stop", "index": index})
    if block.kind == "thinking":
        signature = {"type": "signature_delta", "signature": _signature(block)}
        delta = {"type": "content_block_delta", "index": index, "delta": signature}
        closing = _event("content_block_delta", delta) + closing
    if not block.shown:
        return [(block.tokens, opening + closing)]
    kind, field = _DELTAS[block.kind]
    before = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
        b'{"type":"%s","%s":' % (index, kind.encode(), field.encode())
    )
    step = chunk_tokens * BYTES_PER_TOKEN
    text = block.text
    # Generated text needs no escapes; a tool's JSON does.
    plain = block.kind != "tool_use" and text.isascii() and "\\" not in text and '"' not in text
    chunks = []
    for at in range(0, len(text), step):
        piece = text[at : at + step]
        quoted = b'"%s"' % piece.encode() if plain else _encode(piece)
        done = min((at + step) // BYTES_PER_TOKEN, block.tokens)
        chunks.append((done, before + quoted + b"}}\n\n"))
    if not chunks:
        return [(block.tokens, opening + closing)]
    first = chunks[0]
    chunks[0] = (first[0], opening + first[1])
    last = chunks[-1]
    chunks[-1] = (block.tokens, last[1] + closing)
    return chunks


def stream_chunks(
    message_id: str, model: str, answer: Answer, counts: TokenCounts, chunk_tokens: int
) -> list[tuple[int, bytes]]:
    """The whole stream: (output tokens that are out, events) for each chunk, in order.

    The first chunk holds `message_start` and the first piece of content, the last one the end of the message.
    """
    opening = _event(
        "message_start",
        {
            "type": "message_start",
            "message": {
                "id": message_id,
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": _usage(counts, 1, 0),
            },
        },
    )
    closing = _event(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": answer.stop_reason, "stop_sequence": answer.stop_sequence},
            "usage": _usage(counts, answer.output_tokens, answer.thinking_tokens),
        },
    ) + _event("message_stop", {"type": "message_stop"})
    chunks: list[tuple[int, bytes]] = []
    out = 0
    for index, block in enumerate(answer.blocks):
        chunks += [(out + n, data) for n, data in _block_chunks(block, index, chunk_tokens)]
        out += block.tokens
    if not chunks:
        return [(answer.output_tokens, opening + _PING + closing)]
    tokens, data = chunks[0]
    chunks[0] = (tokens, opening + _PING + data)
    tokens, data = chunks[-1]
    chunks[-1] = (answer.output_tokens, data + closing)
    return chunks


def error_body(
    error_type: str, message: str, request_id: str, details: dict[str, Any] | None = None
) -> bytes:
    """An error in the API's shape."""
    error: dict[str, Any] = {"type": error_type, "message": message}
    if details is not None:
        error["details"] = details
    return _encode({"type": "error", "error": error, "request_id": request_id})


def error_event(error_type: str, message: str, request_id: str) -> bytes:
    """An error in the middle of a stream."""
    return b"event: error\ndata: %s\n\n" % error_body(error_type, message, request_id)
