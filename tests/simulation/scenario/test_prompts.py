"""Prompts: text by id, bodies that live clients send, and keys that virtual caches use in their place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.messages import Call, content_key
from reference_impl.telemetry import RequestTrace
from simulation.scenario.prompts import (
    BYTES_PER_TOKEN,
    prompt_text,
    request_body,
    request_size_bytes,
    virtual_key,
)
from simulation.scenario.spec import parse_scenario
from simulation.scenario.workload import CompiledWorkload, compile_workload


def workload(text: str, horizon_s: float = 20) -> CompiledWorkload:
    return compile_workload(parse_scenario(f"workload: {text}\nhorizon_s: {horizon_s}\n"))


MIXED = workload(
    "{arrivals: {kind: poisson, rate_per_s: 20}, prompts: {kind: zipf, prompts: 5, share: 0.7},"
    ' models: [{name: a}, {name: "b \\"quoted\\" é"}], tenants: [{name: t}, {name: ü}], stream_fraction: 0.5,'
    " input_tokens: {kind: lognormal, median: 100, sigma: 2}}"
)
CONVERSATIONS = workload(
    "{arrivals: {kind: sessions, starts: {kind: poisson, rate_per_s: 1},"
    " turns: {kind: uniform, low: 1, high: 6}, think_s: 1}, tenants: [{name: t}, {name: u}]}"
)
BOTH = pytest.mark.parametrize("requests", [MIXED, CONVERSATIONS], ids=["single", "sessions"])


def live_key(requests: CompiledWorkload, row: int) -> str:
    """What a gateway computes that parsed this row's body."""
    body = request_body(requests, row)
    document = json.loads(body)
    call = Call(
        request_id=row,
        model=document["model"],
        max_tokens=document["max_tokens"],
        stream=document["stream"],
        trace=RequestTrace(),
        tenant=requests.tenants[requests.tenant[row]],
        body=body,
    )
    return content_key(call)


@given(st.integers(0, 10**12), st.integers(1, 30_000))
def test_text_begins_with_its_id_and_has_about_four_bytes_a_token(prompt: int, tokens: int) -> None:
    text = prompt_text(prompt, tokens)
    assert text == prompt_text(prompt, tokens)
    assert text.startswith(f"prompt {prompt}: ")
    assert len(text.encode()) == max(BYTES_PER_TOKEN * tokens, len(f"prompt {prompt}: "))


def test_different_prompts_have_different_text_however_short() -> None:
    assert len({prompt_text(prompt, 1) for prompt in range(2000)}) == 2000


@BOTH
def test_the_virtual_key_is_the_content_key_of_the_live_call(requests: CompiledWorkload) -> None:
    for row in [*range(len(requests)), *range(0, len(requests), 7)]:
        assert virtual_key(requests, row) == live_key(requests, row)


def test_equal_prompts_share_a_key_within_a_tenant_and_model_only() -> None:
    seen: dict[str, tuple[int, int, int]] = {}
    for row in range(len(MIXED)):
        who = (int(MIXED.prompt_id[row]), int(MIXED.model[row]), int(MIXED.tenant[row]))
        assert seen.setdefault(virtual_key(MIXED, row), who) == who
    assert len(seen) == len(set(seen.values())) < len(MIXED)


def test_only_the_keys_of_prompts_that_repeat_are_remembered() -> None:
    requests = workload(
        "{arrivals: {kind: poisson, rate_per_s: 50}, prompts: {kind: zipf, prompts: 5, share: 0.5}}"
    )
    for row in range(len(requests)):
        virtual_key(requests, row)
    assert len(requests.known_keys) == 5


@BOTH
def test_the_stated_size_is_the_size_of_the_body(requests: CompiledWorkload) -> None:
    for row in range(len(requests)):
        assert request_size_bytes(requests, row) == len(request_body(requests, row))


def test_a_body_is_a_messages_request_with_one_user_message() -> None:
    for row in range(50):
        document = json.loads(request_body(MIXED, row))
        assert document.keys() == {"model", "max_tokens", "stream", "messages"}
        assert document["stream"] is bool(MIXED.stream[row])
        assert document["max_tokens"] >= MIXED.output_tokens[row]
        (message,) = document["messages"]
        assert message["role"] == "user"
        assert len(message["content"]) >= BYTES_PER_TOKEN * MIXED.input_tokens[row]


def test_a_later_turn_sends_the_turns_and_answers_before_it_word_for_word() -> None:
    for row in range(1, len(CONVERSATIONS)):
        messages = json.loads(request_body(CONVERSATIONS, row))["messages"]
        turn = int(CONVERSATIONS.turn[row])
        assert [m["role"] for m in messages] == ["user", "assistant"] * turn + ["user"]
        if turn:
            before = json.loads(request_body(CONVERSATIONS, row - 1))["messages"]
            assert messages[: 2 * turn - 1] == before
        length = sum(len(m["content"]) for m in messages)
        assert length == pytest.approx(BYTES_PER_TOKEN * CONVERSATIONS.input_tokens[row], rel=0.1)
