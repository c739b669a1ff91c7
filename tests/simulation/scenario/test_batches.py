"""Batches of a scenario, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reference_impl.batches.service import MAX_REQUESTS
from reference_impl.messages import RequestTag
from simulation.scenario.compiled_batches import FIRST_BATCH_ID, CompiledBatch, place_of
from simulation.scenario.errors import ScenarioError, WorkloadError
from simulation.scenario.prompts import batch_requests, batch_size_bytes
from simulation.scenario.spec import Scenario, load_scenario, scenario_sha256
from simulation.scenario.workload import CompiledWorkload, compile_workload
from simulation.scenario.workload_spec import BatchSpec

# As it was before the language knew of batches.
MM1_SHA256 = "b98d5d6d1fb42faaf08ac7218b501479498e746502df36c2bded2fafd1fe0a25"
NIGHT: dict[str, object] = {"at_s": 5, "requests": 400, "model": "claude-haiku-4-5"}


def scenario(*batches: Mapping[str, object], **overrides: object) -> Scenario:
    return load_scenario(
        "demo",
        {
            "deployment.queue.broker": "redis",
            "deployment.database.ledger": "sqlite",
            "workload.batches": list(batches),
            **overrides,
        },
    )


def compiled(*batches: Mapping[str, object], **overrides: object) -> CompiledWorkload:
    return compile_workload(scenario(*batches, **overrides))


def columns(batch: CompiledBatch) -> tuple[list[int], list[int]]:
    return batch.input_tokens.tolist(), batch.output_tokens.tolist()


def test_a_batch_has_its_lengths_by_seed_place_in_the_list_and_place_in_the_batch() -> None:
    one = compiled(NIGHT).batches[0]
    assert len(one) == 400
    assert np.median(one.input_tokens) == pytest.approx(500, rel=0.2)
    assert np.median(one.output_tokens) == pytest.approx(150, rel=0.2)
    longer = compiled({**NIGHT, "requests": 500}).batches[0]
    assert columns(longer)[0][:400] == columns(one)[0]
    second = compiled(NIGHT, NIGHT).batches[1]
    assert columns(second) != columns(one)
    assert columns(compiled(NIGHT, seed=2).batches[0]) != columns(one)


def test_a_batch_depends_on_nothing_else() -> None:
    one = compiled(NIGHT).batches[0]
    other = compiled(
        NIGHT, horizon_s=7, **{"workload.arrivals": {"kind": "constant", "rate_per_s": 1}}
    ).batches[0]
    assert columns(other) == columns(one)
    assert other.first_id == one.first_id == FIRST_BATCH_ID


def test_nothing_else_depends_on_a_batch() -> None:
    with_it, without = compiled(NIGHT), compiled()
    for name in ("intended_s", "prompt_id", "input_tokens", "output_tokens", "model", "tenant"):
        assert np.array_equal(getattr(with_it, name), getattr(without, name), equal_nan=True)
    assert (with_it.models, with_it.tenants) == (without.models, without.tenants)


def test_a_scenario_without_batches_has_the_sha256_that_it_always_had() -> None:
    assert scenario_sha256(load_scenario("mm1")) == MM1_SHA256
    assert scenario_sha256(scenario(NIGHT)) != scenario_sha256(scenario())
    assert compiled(NIGHT).sha256 != compiled().sha256
    assert compiled(NIGHT).sha256 != compiled({**NIGHT, "poll_s": 1}).sha256


def test_a_file_keeps_batches_and_one_without_them_has_no_trace_of_any(tmp_path: Path) -> None:
    workload = compiled(NIGHT, {**NIGHT, "at_s": 9, "tenant": "b", "requests": 3, "poll_s": 0.5})
    workload.save(tmp_path / "with.npz")
    back = CompiledWorkload.load(tmp_path / "with.npz")
    assert back.sha256 == workload.sha256
    assert [columns(b) for b in back.batches] == [columns(b) for b in workload.batches]
    (_, last) = back.batches
    assert (last.number, last.at_s, last.poll_s, last.model, last.tenant, last.max_tokens) == (
        (1, 9.0, 0.5, "claude-haiku-4-5", "b", 4096)
    )
    compiled().save(tmp_path / "without.npz")
    with np.load(tmp_path / "without.npz") as stored:
        assert [name for name in stored if name.startswith("batch")] == []


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "workload.npz"
    compiled(NIGHT).save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    for name, damaged in (
        ("batch_input_tokens", arrays["batch_input_tokens"][1:]),
        ("batch_at_s", arrays["batch_at_s"] + 1),
    ):
        np.savez(path, **(arrays | {name: damaged}))
        with pytest.raises(WorkloadError, match=str(path)):
            CompiledWorkload.load(path)


def test_a_replay_submits_batches_when_they_were_submitted() -> None:
    workload = compiled(NIGHT, NIGHT)
    replay = workload.replaying(workload.intended_s, {1: 6.5})
    assert [(b.number, b.at_s) for b in replay.batches] == [(1, 6.5)]
    assert columns(replay.batches[0]) == columns(workload.batches[1])


def test_a_batch_at_or_after_the_horizon_is_not_submitted_and_the_others_keep_their_numbers() -> (
    None
):
    batches = compiled({**NIGHT, "at_s": 10}, NIGHT, horizon_s=10).batches
    assert [b.number for b in batches] == [1]


def test_requests_are_those_of_the_api_and_their_custom_ids_are_their_tags() -> None:
    (batch,) = compiled({**NIGHT, "max_tokens": 77}).batches
    requests = batch_requests(batch)
    tags = [RequestTag.of_custom_id(request.custom_id) for request in requests]
    assert None not in tags
    assert [place_of(tag.request_id) for tag in tags if tag] == [(0, n) for n in range(400)]
    assert [(t.input_tokens, t.output_tokens) for t in tags if t] == list(
        zip(*columns(batch), strict=True)
    )
    texts = set()
    for request, size in zip(requests, batch.input_tokens.tolist(), strict=True):
        params = msgspec.json.decode(request.params)
        (message,) = params.pop("messages")
        assert params == {"max_tokens": 77, "model": "claude-haiku-4-5"}
        assert message["role"] == "user"
        assert len(message["content"]) == 4 * size
        texts.add(message["content"])
    assert len(texts) == 400
    body = msgspec.json.encode({"requests": requests})
    assert len(body) <= batch_size_bytes(batch) <= 1.5 * len(body)


def test_ids_outside_of_batches_are_told_apart() -> None:
    assert place_of(FIRST_BATCH_ID - 1)[0] == -1
    assert place_of(3 * FIRST_BATCH_ID + 7) == (2, 7)
    assert RequestTag.of_custom_id("request-7") is None
    assert RequestTag.of_custom_id("twinload-1-2-3") is None


def test_a_batch_that_no_gateway_would_take_is_refused_with_its_size() -> None:
    huge = {"requests": 2000, "input_tokens": 100_000}
    with pytest.raises(WorkloadError, match=r"^workload\.batches\.1: 764 MB in one batch, at most"):
        compiled(NIGHT, huge)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("requests", 0, "greater than or equal to 1"),
        ("requests", MAX_REQUESTS + 1, "less than or equal to 100000"),
        ("poll_s", 0, "greater than or equal to 0.01"),
        ("at_s", -1, "greater than or equal to 0"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("reqests", 7, "did you mean 'requests'"),
    ],
)
def test_a_field_out_of_bounds_is_named(field: str, value: object, complaint: str) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario(NIGHT, {**NIGHT, field: value})
    assert "workload.batches.1" in str(error.value)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_requests_is_all_that_a_batch_must_say() -> None:
    assert BatchSpec.model_validate({"requests": 1}).poll_s == 10.0


@pytest.mark.parametrize(
    "wrong", [{}, {"limit_s": 5, "quantile": 0.5}, {"limit_s": 5, "limit": 0.1}]
)
def test_a_promise_on_batches_takes_limit_s_alone(wrong: Mapping[str, object]) -> None:
    with pytest.raises(ScenarioError, match="a batch takes limit_s, and no quantile or limit"):
        scenario(NIGHT, slos=[{"name": "soon", "metric": "batch", **wrong}])
