"""What is answered: lengths, tool calls, streams and wholes of the same content."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import msgspec
import pytest

from reference_impl.messages import RequestTag
from simulation.kernel import run
from simulation.models.endpoint.answer import passage_text
from simulation.models.endpoint.schema_sample import sample_of
from simulation.models.llm_endpoint import LLMEndpoint
from tests.simulation.models.endpoint.calls import Seen, profile, tagged, with_body


@pytest.mark.parametrize("tokens", [1, 2, 8_191, 8_192, 30_000])
@pytest.mark.parametrize("place", [0, 8_190, 123_456_789])
def test_text_is_exactly_as_long_as_asked_for(place: int, tokens: int) -> None:
    text = passage_text(place, tokens)
    assert len(text) == 4 * tokens - 1
    assert re.fullmatch(r"\w{3}( \w{3})*", text)


def _body(**fields: Any) -> dict[str, Any]:
    async def main() -> bytes:
        return (await LLMEndpoint(profile(), 1).complete(with_body(1, **fields))).body

    return msgspec.json.decode(run(main()))  # type: ignore[no-any-return]


def test_the_tags_length_wins_and_max_tokens_cuts() -> None:
    async def main(max_tokens: int) -> dict[str, Any]:
        call = with_body(1, max_tokens=max_tokens)
        call.tag = RequestTag(1, 0, 1, 77, 50)
        return msgspec.json.decode((await LLMEndpoint(profile(), 1).complete(call)).body)  # type: ignore[no-any-return]

    whole, cut = run(main(60)), run(main(20))
    assert (whole["usage"]["output_tokens"], whole["stop_reason"]) == (50, "end_turn")
    assert (cut["usage"]["output_tokens"], cut["stop_reason"]) == (20, "max_tokens")
    assert whole["content"][0]["text"].startswith(cut["content"][0]["text"])
    assert whole["usage"]["input_tokens"] == 77


def test_a_stream_carries_the_same_content_as_the_whole_answer() -> None:
    fields = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}

    async def main() -> bytes:
        seen = Seen()
        await LLMEndpoint(profile(), 1).complete(with_body(1, stream=True, **fields), seen.emit)
        return seen.data

    blocks: dict[int, str] = {}
    for line in run(main()).splitlines():
        if line.startswith(b"data: "):
            event = msgspec.json.decode(line[6:])
            if event["type"] == "content_block_delta":
                delta = event["delta"]
                piece = delta.get("text", delta.get("thinking", ""))
                blocks[event["index"]] = blocks.get(event["index"], "") + piece
    thinking, text = _body(**fields)["content"]
    assert blocks == {0: thinking["thinking"], 1: text["text"]}


def test_omitted_thinking_shows_its_signature_only() -> None:
    block = _body(thinking={"type": "adaptive", "display": "omitted"})["content"][0]
    assert (block["thinking"], bool(block["signature"])) == ("", True)


def test_size_without_a_body_is_close_to_size_with_one() -> None:
    async def main(*, stream: bool) -> tuple[int, int]:
        endpoint = LLMEndpoint(profile(), 1)
        real = with_body(1, stream=stream)
        real.tag = RequestTag(1, 0, 1, 100, 200)
        virtual = tagged(1, out=200, stream=stream)
        sent = await endpoint.complete(real, Seen().emit)
        imagined = await endpoint.complete(virtual, Seen().emit)
        return sent.size_bytes, imagined.size_bytes

    for stream in (False, True):
        sent, imagined = run(main(stream=stream))
        assert imagined == pytest.approx(sent, rel=0.05)


_SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 9, "maxLength": 9},
            "when": {"type": "string", "format": "date-time"},
            "kind": {"enum": ["a", "b"]},
            "same": {"const": [1, {"x": None}]},
            "count": {"type": "integer", "exclusiveMinimum": 4, "multipleOf": 3},
            "share": {"type": "number", "minimum": 0.2, "maximum": 0.4},
            "below": {"type": "integer", "maximum": -7},
            "many": {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
            "pair": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}]},
            "maybe": {"type": ["integer", "null"]},
            "either": {"anyOf": [{"type": "number"}, {"type": "string"}]},
            "node": {"$ref": "#/$defs/node"},
            "both": {
                "allOf": [
                    {"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]},
                    {"properties": {"q": {"type": "boolean"}}, "required": ["q"]},
                ]
            },
        },
        "required": [
            "name", "when", "kind", "same", "count", "share", "below", "many", "pair", "maybe",
            "either", "node", "both",
        ],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["label", "next"],
            }
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("schema", _SCHEMAS)
def test_a_sample_satisfies_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(sample_of(schema))


def test_a_schema_that_demands_itself_twice_ends() -> None:
    itself = {"$ref": "#"}
    schema = {"type": "object", "properties": {"a": itself, "b": itself}, "required": ["a", "b"]}
    assert sample_of(schema).keys() == {"a", "b"}
