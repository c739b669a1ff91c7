"""The provider's prompt cache in usage, price and latency."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reference_impl.messages import Usage
from reference_impl.prices import load_prices
from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from tests.simulation.models.endpoint.calls import Records, profile, with_body

_LONG = "word " * 2_000  # 2,500 tokens
_LONGER = "more " * 2_000


def _mark(ttl: str | None = None) -> dict[str, str]:
    return {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": ttl}


def _system(*blocks: tuple[str, dict[str, str] | None]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": text, **({} if mark is None else {"cache_control": mark})}
        for text, mark in blocks
    ]


def _usages(requests: list[tuple[float, dict[str, Any]]]) -> list[tuple[int, int, int]]:
    """(uncached, written, read) of requests sent at their instants, one after the other."""

    async def main() -> list[tuple[int, int, int]]:
        endpoint = LLMEndpoint(profile(), 1)
        found = []
        for row, (at_s, fields) in enumerate(requests):
            await asyncio.sleep(at_s - asyncio.get_running_loop().time())
            usage = (await endpoint.complete(with_body(row, **fields))).usage
            found.append(
                (
                    usage.input_tokens,
                    usage.cache_creation_input_tokens,
                    usage.cache_read_input_tokens,
                )
            )
        return found

    return run(main())


def test_a_marked_prefix_is_written_once_and_read_afterwards() -> None:
    same = {"system": _system((_LONG, _mark()))}
    other = {**same, "messages": [{"role": "user", "content": "another question"}]}
    assert _usages([(0, same), (10, other)]) == [(5, 2500, 0), (7, 0, 2500)]


def test_without_a_mark_nothing_is_cached() -> None:
    plain = {"system": _system((_LONG, None))}
    assert _usages([(0, plain), (10, plain)]) == [(2505, 0, 0), (2505, 0, 0)]


def test_a_prefix_below_the_models_minimum_is_not_cached() -> None:
    short = {"system": _system(("word " * 500, _mark()))}  # 625 tokens, 1,024 needed
    assert _usages([(0, short), (10, short)]) == [(630, 0, 0), (630, 0, 0)]


def test_an_entry_lives_five_minutes_from_its_last_use() -> None:
    same = {"system": _system((_LONG, _mark()))}
    found = _usages([(0, same), (200, same), (450, same), (751, same)])
    assert [read for _, _, read in found] == [0, 2500, 2500, 0]


def test_an_answer_says_what_it_wrote_for_an_hour() -> None:
    async def main() -> Usage:
        call = with_body(0, system=_system((_LONG, _mark("1h"))))
        return (await LLMEndpoint(profile(), 1).complete(call)).usage

    usage = run(main())
    assert (usage.cache_creation_input_tokens, usage.cache_creation_1h_input_tokens) == (2500, 2500)


def test_an_entry_for_an_hour_lives_an_hour() -> None:
    same = {"system": _system((_LONG, _mark("1h")))}
    found = _usages([(0, same), (3_000, same), (7_000, same)])
    assert [read for _, _, read in found] == [0, 2500, 0]


def test_a_longer_prompt_reads_the_known_prefix_and_writes_the_rest() -> None:
    first = {"system": _system((_LONG, _mark()))}
    second = {"system": _system((_LONG, _mark()), (_LONGER, _mark("1h")))}
    assert _usages([(0, first), (10, second), (20, second)]) == [
        (5, 2500, 0),
        (5, 2500, 2500),
        (5, 0, 5000),
    ]


def test_a_conversation_finds_the_prefix_that_an_earlier_turn_marked() -> None:
    def turn(*texts: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        blocks = [
            {"role": roles[i % 2], "content": [{"type": "text", "text": text}]}
            for i, text in enumerate(texts)
        ]
        blocks[-1]["content"][-1]["cache_control"] = _mark()  # type: ignore[index]
        return {"messages": blocks}

    found = _usages([(0, turn(_LONG)), (10, turn(_LONG, "an answer", "next question"))])
    assert found[0][1:] == (2503, 0)
    assert found[1][2] == 2503


def test_a_changed_beginning_misses() -> None:
    first = {"system": _system((_LONG, _mark()))}
    second = {"system": _system(("X" + _LONG, _mark()))}
    assert _usages([(0, first), (10, second)])[1][2] == 0


def test_the_top_level_mark_caches_the_whole_prompt() -> None:
    same = {"system": _LONG, "cache_control": _mark()}
    assert _usages([(0, same), (10, same)]) == [(0, 2505, 0), (0, 0, 2505)]


def test_a_cache_hit_is_faster_and_cheaper() -> None:
    records = Records()
    service = {"kind": "provider", "ttft_s": 1.0, "tokens_per_s": 10}

    async def main() -> None:
        endpoint = LLMEndpoint(profile(service=service), 1, observer=records.observe)
        for row in range(2):
            await endpoint.complete(with_body(row, system=_system((_LONG, _mark()))))

    run(main())
    written, read = records
    assert written.drawn_first_token_s == pytest.approx(1 + 2505 * 1e-4)
    assert read.drawn_first_token_s == pytest.approx(1 + 2500 * 1e-5 + 5 * 1e-4)
    # Sonnet 5.5: $2 input, $2.50 write, $0.10 read, $10 output per million.
    assert written.cost_usd == pytest.approx((5 * 2 + 2500 * 2.5 + 20 * 10) / 1e6)
    assert read.cost_usd == pytest.approx((5 * 2 + 2500 * 0.1 + 20 * 10) / 1e6)


def test_a_prompt_beyond_haikus_threshold_costs_five_times_as_much() -> None:
    prices = load_prices()
    below = prices.cost_usd("claude-haiku-5-5", input_tokens=100_000, output_tokens=0)
    above = prices.cost_usd("claude-haiku-5-5", input_tokens=100_001, output_tokens=0)
    assert below == pytest.approx(0.01)
    assert above == pytest.approx(0.0500005)


def test_a_batch_costs_half() -> None:
    prices = load_prices()
    full = prices.cost_usd("claude-opus-5-5", input_tokens=1000, output_tokens=1000)
    half = prices.cost_usd("claude-opus-5-5", input_tokens=1000, output_tokens=1000, batch=True)
    assert half == pytest.approx(full / 2) == pytest.approx(0.012)
