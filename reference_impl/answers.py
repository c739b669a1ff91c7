"""An answer that can be given again, streamed or whole, whichever way it was first asked for.

The Messages API says the same thing in two forms: one JSON message, or server-sent events that build it. A cache that
kept the forms apart would miss half of its hits.
"""

from __future__ import annotations

from typing import Any

import msgspec

from reference_impl.messages import Completion

__all__ = ["Answer", "events_of_message", "message_of_events"]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A completion beside the events that streamed it (empty if it was not streamed, and in virtual time)."""

    completion: Completion
    events: bytes = b""

    @property
    def size_bytes(self) -> int:
        return max(self.completion.size_bytes, len(self.completion.body)) + len(self.events)

    def as_events(self) -> bytes:
        """The answer as server-sent events."""
        if self.events or not self.completion.body:
            return self.events
        return events_of_message(msgspec.json.decode(self.completion.body))

    def as_message(self) -> Completion:
        """The answer with its JSON body."""
        if self.completion.body or not self.events:
            return self.completion
        body = msgspec.json.encode(message_of_events(self.events))
        return msgspec.structs.replace(self.completion, body=body, size_bytes=len(body))


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind} | data))


def events_of_message(message: dict[str, Any]) -> bytes:
    """The events that deliver `message`, each content block in one delta."""
    usage = message["usage"]
    opening = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage | {"output_tokens": 0},
    }
    parts = [_event("message_start", {"message": opening})]
    for index, block in enumerate(message["content"]):
        parts.append(
            _event("content_block_start", {"index": index, "content_block": _emptied(block)})
        )
        parts += [
            _event("content_block_delta", {"index": index, "delta": delta})
            for delta in _deltas(block)
        ]
        parts.append(_event("content_block_stop", {"index": index}))
    ending = {
        "stop_reason": message["stop_reason"],
        "stop_sequence": message.get("stop_sequence"),
    }
    parts.append(_event("message_delta", {"delta": ending, "usage": usage}))
    parts.append(_event("message_stop", {}))
    return b"".join(parts)


def _emptied(block: dict[str, Any]) -> dict[str, Any]:
    """A content block as its `content_block_start` shows it."""
    match block["type"]:
        case "text":
            return block | {"text": ""}
        case "thinking":
            return block | {"thinking": "", "signature": ""}
        case "tool_use":
            return block | {"input": {}}
        case _:
            return block


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    match block["type"]:
        case "text":
            return [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            return [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block.get("signature", "")},
            ]
        case "tool_use":
            text = msgspec.json.encode(block["input"]).decode()
            return [{"type": "input_json_delta", "partial_json": text}]
        case _:
            return []


def message_of_events(events: bytes) -> dict[str, Any]:
    """The message that a complete stream of events builds. Raises ValueError if the stream is not complete."""
    message: dict[str, Any] | None = None
    partial_json: dict[int, str] = {}
    complete = False
    for line in events.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        event = msgspec.json.decode(line[5:])
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "message_stop":
            complete = True
        elif message is not None:
            _apply(message, event, kind, partial_json)
    if message is None or not complete:
        raise ValueError("the stream of events does not make a complete message")
    for index, text in partial_json.items():
        message["content"][index]["input"] = msgspec.json.decode(text) if text else {}
    return message


def _apply(
    message: dict[str, Any], event: dict[str, Any], kind: str, partial_json: dict[int, str]
) -> None:
    match kind:
        case "content_block_start":
            message["content"].append(event["content_block"])
        case "content_block_delta":
            block = message["content"][event["index"]]
            delta = event["delta"]
            match delta["type"]:
                case "text_delta":
                    block["text"] += delta["text"]
                case "thinking_delta":
                    block["thinking"] += delta["thinking"]
                case "signature_delta":
                    block["signature"] = delta["signature"]
                case "input_json_delta":
                    index = event["index"]
                    partial_json[index] = partial_json.get(index, "") + delta["partial_json"]
        case "message_delta":
            message.update({k: v for k, v in event["delta"].items() if v is not None})
            message["usage"] = message["usage"] | event.get("usage", {})
