"""What the endpoint answers: text of exactly the length that was fixed, thinking before it, or a tool call.

A token of generated text is one word of three letters and a space: four bytes, so text of n tokens counts as n tokens. The
text is a slice of one endless passage at a place given by the prompt: same prompt, same answer.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Any, Final

import msgspec

from simulation.models.endpoint.request_types import MessagesRequest
from simulation.models.endpoint.schema_sample import sample_of
from simulation.models.endpoint.tokens import BYTES_PER_TOKEN
from simulation.scenario.random_streams import generator

__all__ = ["Answer", "Block", "compose", "passage_text"]

_PASSAGE_TOKENS: Final = 1 << 13
_WORDS: Final = tuple(
    re.findall(
        r"\w{3}",
        "act add age air all and any arm art ask bag bar bed big box boy bus buy can car cat cup cut day dog "
        "dry ear eat egg end eye far few fit fly for fun get had hat her him his hit hot how ice job key kid "
        "law lay leg let lot low man map may men new now off old one our out own pay per put red run sea see "
        "set she sit six sky son sun ten the too top try two use was way who why win yes yet you",
    )
)


class Block(msgspec.Struct, frozen=True):
    """One content block: `deltas` are its pieces of text (or of JSON), `tokens` what it costs."""

    kind: str  # text | thinking | tool_use
    text: str
    tokens: int
    tool_id: str = ""
    tool_name: str = ""
    shown: bool = True  # thinking may be omitted from display


class Answer(msgspec.Struct, frozen=True):
    """The content of one answer, and why it ends."""

    blocks: tuple[Block, ...]
    output_tokens: int
    thinking_tokens: int
    stop_reason: str
    stop_sequence: str | None = None


@cache
def _passage() -> str:
    places = generator(0, "endpoint/passage").integers(0, len(_WORDS), _PASSAGE_TOKENS)
    return " ".join(_WORDS[i] for i in places.tolist()) + " "


def passage_text(place: int, tokens: int) -> str:
    """Text of `tokens` tokens that begins at `place`; it has no space at its end."""
    passage = _passage()
    start = place % _PASSAGE_TOKENS * BYTES_PER_TOKEN
    end = start + tokens * BYTES_PER_TOKEN - 1
    if end <= len(passage):
        return passage[start:end]
    return (passage * (end // len(passage) + 1))[start:end]


def compose(
    request: MessagesRequest, prompt_id: int, output_tokens: int, thinking_share: float
) -> Answer:
    """The answer to `request`, at most `request.max_tokens` long.

    `output_tokens`: the length wanted, thinking included. A tool call or structured output is as long as its JSON.
    """
    cut = output_tokens > request.max_tokens
    total = min(output_tokens, request.max_tokens)
    place = (prompt_id * 0x9E3779B1) & 0xFFFFFFFF  # neighbouring prompts get distant places
    blocks: list[Block] = []
    thinking_tokens = 0
    if request.thinks and total > 1:
        thinking_tokens = max(1, min(int(total * thinking_share), total - 1))
        thinking = request.thinking or {}
        thinking_tokens = min(thinking_tokens, thinking.get("budget_tokens", thinking_tokens))
        shown = thinking.get("display") != "omitted"
        text = passage_text(place + 1, thinking_tokens) if shown else ""
        blocks.append(Block("thinking", text, thinking_tokens, shown=shown))
    tool = _forced_tool(request)
    if tool is not None:
        return _tool_answer(request, tool, prompt_id)
    layout = (request.output_config or {}).get("format")
    if layout is not None:
        text = msgspec.json.encode(sample_of(layout["schema"])).decode()
        size = -(-len(text) // BYTES_PER_TOKEN)
        allowed = request.max_tokens - thinking_tokens
        if size > allowed:
            text = text[: allowed * BYTES_PER_TOKEN]
        blocks.append(Block("text", text, min(size, allowed)))
        reason = "max_tokens" if size > allowed else "end_turn"
        return Answer(tuple(blocks), thinking_tokens + min(size, allowed), thinking_tokens, reason)
    text = passage_text(place, total - thinking_tokens)
    stop = _first_stop(text, request.stop_sequences)
    if stop is not None:
        sequence, at = stop
        text = text[:at]
        tokens = -(-(at + len(sequence)) // BYTES_PER_TOKEN)
        if text:
            blocks.append(Block("text", text, tokens))
        total = thinking_tokens + tokens
        return Answer(tuple(blocks), total, thinking_tokens, "stop_sequence", sequence)
    blocks.append(Block("text", text, total - thinking_tokens))
    return Answer(tuple(blocks), total, thinking_tokens, "max_tokens" if cut else "end_turn")


def _first_stop(text: str, sequences: list[str] | None) -> tuple[str, int] | None:
    found = [(text.find(s), s) for s in sequences or () if s in text]
    if not found:
        return None
    at, sequence = min(found)
    return sequence, at


def _forced_tool(request: MessagesRequest) -> dict[str, Any] | None:
    choice = (request.tool_choice or {}).get("type")
    if choice not in ("any", "tool"):
        return None
    tools = request.tools or []
    if choice == "tool":
        wanted = (request.tool_choice or {}).get("name")
        return next(tool for tool in tools if tool.get("name") == wanted)
    return next((tool for tool in tools if "input_schema" in tool), tools[0])


def _tool_answer(request: MessagesRequest, tool: dict[str, Any], prompt_id: int) -> Answer:
    text = msgspec.json.encode(sample_of(tool.get("input_schema", {"type": "object"}))).decode()
    tokens = min(-(-len(text) // BYTES_PER_TOKEN), request.max_tokens)
    digest = hashlib.blake2b(f"{prompt_id}/{tool['name']}".encode(), digest_size=12).hexdigest()
    block = Block("tool_use", text, tokens, tool_id=f"toolu_{digest}", tool_name=str(tool["name"]))
    return Answer((block,), tokens, 0, "tool_use")
