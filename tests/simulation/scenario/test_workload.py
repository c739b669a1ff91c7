"""The compiled workload: repeatable, immutable, and the same whatever the deployment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from simulation.scenario.errors import WorkloadError
from simulation.scenario.spec import Scenario, load_scenario, parse_scenario, presets
from simulation.scenario.workload import CompiledWorkload, compile_workload

ROOT = Path(__file__).parents[3]


def scenario(workload: str, horizon_s: float = 100, seed: int = 1) -> Scenario:
    return parse_scenario(f"workload: {workload}\nhorizon_s: {horizon_s}\nseed: {seed}\n")


def compiled(workload: str, horizon_s: float = 100, seed: int = 1) -> CompiledWorkload:
    return compile_workload(scenario(workload, horizon_s, seed))


POISSON = "{arrivals: {kind: poisson, rate_per_s: 20}}"
MIXED = (
    "{arrivals: {kind: poisson, rate_per_s: 20}, prompts: {kind: zipf, prompts: 50, share: 0.5},"
    " models: [{name: a}, {name: b}], tenants: [{name: a}, {name: b}], stream_fraction: 0.5}"
)
SESSIONS = (
    "{arrivals: {kind: sessions, starts: {kind: poisson, rate_per_s: 2},"
    " turns: {kind: uniform, low: 1, high: 9}, think_s: {kind: exponential, mean: 3}},"
    " input_tokens: {kind: uniform, low: 10, high: 500}, output_tokens: {kind: uniform, low: 5, high: 50}}"
)
COLUMNS = [
    name
    for name, value in vars(compiled(POISSON, 1)).items()
    if isinstance(value, np.ndarray)
]  # fmt: skip


def same_rows(a: CompiledWorkload, b: CompiledWorkload, rows: int) -> bool:
    return all(
        np.array_equal(
            getattr(a, c)[:rows], getattr(b, c)[:rows], equal_nan=getattr(a, c).dtype.kind == "f"
        )
        for c in COLUMNS
    )


def test_every_preset_compiles_alike_under_different_hash_seeds() -> None:
    program = (
        "from simulation.scenario.spec import *\n"
        "from simulation.scenario.workload import compile_workload\n"
        "for name in presets():\n"
        "    scenario = load_scenario(name)\n"
        "    print(name, scenario_sha256(scenario), compile_workload(scenario).sha256)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1234")
    }
    assert len(outputs) == 1
    for name in presets():
        assert compile_workload(load_scenario(name)).sha256 in next(iter(outputs))


def test_policy_deployment_and_endpoint_do_not_change_the_requests() -> None:
    changes = {
        "deployment.instances.initial": 9,
        "deployment.cache.enabled": False,
        "endpoint": "fast",
        "network": 0,
    }
    plain = compile_workload(load_scenario("chat"))
    assert compile_workload(load_scenario("chat", changes)).sha256 == plain.sha256
    assert compile_workload(load_scenario("chat", {"seed": 2})).sha256 != plain.sha256


def test_changing_one_attribute_leaves_the_others_as_they_were() -> None:
    plain = compiled("{arrivals: {kind: poisson, rate_per_s: 20}, stream_fraction: 0.5}")
    longer = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 20}, stream_fraction: 0.5, output_tokens: 900, patience_s: 3}"
    )
    assert np.array_equal(plain.input_tokens, longer.input_tokens)
    assert np.array_equal(plain.stream, longer.stream)
    assert (longer.output_tokens == 900).all()


@pytest.mark.parametrize(
    "workload",
    [
        POISSON,
        MIXED,
        SESSIONS,
    ],
)
def test_a_longer_horizon_only_adds_rows(workload: str) -> None:
    short, long = compiled(workload, 50), compiled(workload, 150)
    assert len(short) < len(long)
    assert same_rows(short, long, len(short))


def test_columns_cannot_be_changed() -> None:
    workload = compiled(POISSON)
    for name in COLUMNS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(workload, name)[0] = 1
    with pytest.raises(AttributeError):
        workload.models = ("other",)  # type: ignore[misc]


def test_a_single_request_stands_alone() -> None:
    workload = compiled(POISSON)
    assert np.array_equal(workload.open_rows, workload.request_id)
    assert (workload.session_id == -1).all()
    assert (workload.next_row == -1).all()
    assert (workload.patience_s == np.inf).all()
    assert len(np.unique(workload.prompt_id)) == len(workload)
    assert not workload.repeats_prompt.any()


def test_tokens_are_whole_within_bounds_and_max_tokens_leaves_room_for_the_answer() -> None:
    workload = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 50}, max_input_tokens: 900, max_tokens: 200,"
        " input_tokens: {kind: lognormal, median: 300, sigma: 3}, output_tokens: {kind: exponential, mean: 100}}"
    )
    assert (workload.input_tokens.min(), workload.input_tokens.max()) == (1, 900)
    assert (workload.output_tokens.min(), workload.output_tokens.max()) == (1, 200)
    assert (workload.max_tokens == 200).all()


def test_zipf_prompts_repeat_as_often_as_zipf_says_and_keep_their_lengths() -> None:
    workload = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 500}, prompts: {kind: zipf, exponent: 1.1, prompts: 20}}"
    )
    n = len(workload)
    weights = np.arange(1, 21) ** -1.1
    expected = n * weights / weights.sum()
    counts = np.bincount(workload.prompt_id, minlength=20)
    assert ((counts - expected) ** 2 / expected).sum() < 50  # 19 degrees of freedom
    for prompt in range(20):
        rows = workload.prompt_id == prompt
        assert len(np.unique(workload.input_tokens[rows])) == 1
        assert len(np.unique(workload.output_tokens[rows])) == 1


def test_only_the_share_of_requests_asks_popular_prompts() -> None:
    workload = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 500}, prompts: {kind: zipf, prompts: 10, share: 0.3}}"
    )
    assert (workload.prompt_id < 10).mean() == pytest.approx(0.3, abs=0.01)
    assert workload.repeats_prompt.mean() == pytest.approx(0.3, abs=0.01)


def test_streams_models_and_tenants_come_in_their_proportions() -> None:
    workload = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 500}, stream_fraction: 0.2,"
        " models: [{name: big, weight: 1}, {name: small, weight: 3}], tenants: [{name: a}, {name: b}]}"
    )
    assert workload.models == ("big", "small")
    assert workload.stream.mean() == pytest.approx(0.2, abs=0.01)
    assert workload.model.mean() == pytest.approx(0.75, abs=0.01)
    assert workload.tenant.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(workload.model, workload.tenant)[0, 1]) < 0.02


def test_patience_is_drawn_per_request() -> None:
    workload = compiled(
        "{arrivals: {kind: poisson, rate_per_s: 500}, patience_s: {kind: exponential, mean: 2}}"
    )
    assert workload.patience_s.mean() == pytest.approx(2, rel=0.03)


def test_closed_users_have_a_row_for_every_turn_that_their_think_times_leave_room_for() -> None:
    workload = compiled(
        "{arrivals: {kind: closed, users: 7, think_s: {kind: exponential, mean: 2}, ramp_s: 14}}"
    )
    assert len(workload.open_rows) == 7
    assert np.array_equal(workload.intended_s[workload.open_rows], np.sort(workload.intended_s[workload.turn == 0]))  # fmt: skip
    for user in range(7):
        rows = np.flatnonzero(workload.session_id == user)
        assert workload.turn[rows].tolist() == list(range(len(rows)))
        assert workload.next_row[rows].tolist() == [*rows[1:].tolist(), -1]
        first_s = workload.intended_s[rows[0]]
        assert first_s >= 2 * user
        assert first_s + workload.think_s[rows].sum() < 100
    assert len(workload) == pytest.approx(7 * 46, rel=0.2)


def test_closed_users_with_a_number_of_requests_stop_after_it() -> None:
    workload = compiled("{arrivals: {kind: closed, users: 3, think_s: 0, requests_per_user: 5}}")
    assert workload.turn.tolist() == [0, 1, 2, 3, 4] * 3
    assert np.count_nonzero(workload.intended_s == 0) == 3


def test_closed_users_who_hardly_think_are_refused_with_a_remedy() -> None:
    with pytest.raises(WorkloadError, match="set requests_per_user"):
        compiled("{arrivals: {kind: closed, users: 10000, think_s: 1e-6}}")


def test_every_turn_of_a_session_carries_the_conversation_before_it() -> None:
    workload = compiled(SESSIONS)
    assert len(np.unique(workload.session_id)) == len(workload.open_rows)
    for row in range(len(workload)):
        if workload.turn[row] == 0:
            assert workload.context_tokens[row] == 0
            assert workload.think_s[row] == 0
            continue
        assert np.isnan(workload.intended_s[row])
        assert workload.next_row[row - 1] == row
        assert workload.session_id[row - 1] == workload.session_id[row]
        before = workload.input_tokens[row - 1] + workload.output_tokens[row - 1]
        assert workload.context_tokens[row] == before
        assert workload.input_tokens[row] > before


def test_a_session_ends_when_its_conversation_is_full() -> None:
    full = compiled(SESSIONS.replace("input_tokens", "max_input_tokens: 600, input_tokens", 1))
    free = compiled(SESSIONS)
    assert full.input_tokens.max() <= 600
    assert len(full) < len(free)
    assert len(full.open_rows) == len(free.open_rows)


TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:00:{i:02d}.5,{100 + i},{1 + i}\n" for i in range(60)
)


def test_a_trace_brings_instants_and_lengths_and_stops_at_the_horizon(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE)
    arrivals = f"{{arrivals: {{kind: trace, path: {tmp_path}/t.csv, speed: 2}}, max_tokens: 30}}"
    workload = compiled(arrivals, horizon_s=20)
    assert workload.intended_s.tolist() == [i / 2 for i in range(40)]
    assert workload.input_tokens.tolist() == [100 + i for i in range(40)]
    assert workload.output_tokens.tolist() == [1 + i for i in range(40)]
    assert (workload.max_tokens >= workload.output_tokens).all()
    assert workload.max_tokens[0] == 30
    assert not workload.repeats_prompt.any()


def test_a_trace_under_zipf_popularity_repeats_prompts_with_one_length_each(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE)
    workload = compiled(
        f"{{arrivals: {{kind: trace, path: {tmp_path}/t.csv}}, prompts: {{kind: zipf, prompts: 5}}}}"
    )
    assert workload.repeats_prompt.any()
    for prompt in np.unique(workload.prompt_id):
        assert len(np.unique(workload.input_tokens[workload.prompt_id == prompt])) == 1


def test_the_sessions_of_a_trace_keep_their_recorded_instants(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "Timestamp,Session ID,Request tokens,Response tokens\n1,a,5,5\n2,b,5,5\n4,a,5,5\n"
    )
    workload = compiled(f"{{arrivals: {{kind: trace, path: {tmp_path}/t.csv}}}}")
    assert workload.session_id.tolist() == [0, 1, 0]
    assert workload.turn.tolist() == [0, 0, 1]
    assert workload.intended_s.tolist() == [0, 1, 3]
    assert (workload.next_row == -1).all()


def test_a_replay_has_the_same_requests_at_the_instants_that_were_measured() -> None:
    workload = compiled(SESSIONS, horizon_s=10)
    sent_s = np.linspace(5, 0, len(workload))
    sent_s[3] = np.nan
    replay = workload.replaying(sent_s)
    assert len(replay.open_rows) == len(workload) - 1
    assert 3 not in replay.open_rows
    assert (np.diff(replay.intended_s[replay.open_rows]) >= 0).all()
    assert (replay.next_row == -1).all()
    assert np.array_equal(replay.input_tokens, workload.input_tokens)
    assert replay.sha256 != workload.sha256
    with pytest.raises(WorkloadError, match="1 instants for"):
        workload.replaying(np.zeros(1))


def test_a_saved_workload_is_the_same_when_loaded(tmp_path: Path) -> None:
    workload = compile_workload(load_scenario("agents", {"horizon_s": 100}))
    workload.save(tmp_path / "w.npz")
    loaded = CompiledWorkload.load(tmp_path / "w.npz")
    assert loaded.sha256 == workload.sha256
    assert same_rows(loaded, workload, len(workload))
    assert (loaded.models, loaded.tenants) == (workload.models, workload.tenants)
    workload.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "w.npz").read_bytes()


def test_a_missing_foreign_or_damaged_workload_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such workload file"):
        CompiledWorkload.load(tmp_path / "w.npz")
    (tmp_path / "w.npz").write_text("hello")
    with pytest.raises(WorkloadError, match="not a compiled workload"):
        CompiledWorkload.load(tmp_path / "w.npz")
    workload = compiled(POISSON, 10)
    workload.save(tmp_path / "w.npz")
    stored = dict(np.load(tmp_path / "w.npz"))
    stored["output_tokens"] = stored["output_tokens"] + 1
    np.savez(tmp_path / "w.npz", **stored)
    with pytest.raises(WorkloadError, match="damaged"):
        CompiledWorkload.load(tmp_path / "w.npz")


def test_an_empty_workload_is_still_a_workload(tmp_path: Path) -> None:
    workload = compiled("{arrivals: {kind: constant, rate_per_s: 0.1}}", 5)
    assert len(workload) == 0
    assert len(workload.open_rows) == 0
    workload.save(tmp_path / "w.npz")
    assert CompiledWorkload.load(tmp_path / "w.npz").sha256 == workload.sha256


def test_the_demo_steps_up_and_down_and_repeats_a_fifth_to_two_fifths_of_its_prompts() -> None:
    workload = compile_workload(load_scenario("demo"))
    counts, _ = np.histogram(workload.intended_s, bins=[0, 10, 25, 40])
    rates = counts / [10, 15, 15]
    assert 20 < rates[1] < 40
    assert rates[1] > 2.5 * max(rates[0], rates[2])
    repeated = 1 - len(np.unique(workload.prompt_id)) / len(workload)
    assert 0.2 < repeated < 0.4


def test_the_chat_preset_lets_the_cache_answer_at_most_three_requests_in_ten() -> None:
    workload = compile_workload(load_scenario("chat"))
    repeated = 1 - len(np.unique(workload.prompt_id)) / len(workload)
    assert 0.1 < repeated < 0.3


def test_an_hour_of_a_hundred_requests_a_second_compiles_in_two_seconds_of_cpu() -> None:
    hour = load_scenario("chat", {"workload.arrivals.rate_per_s": 100, "horizon_s": 3600})
    started_s = time.process_time()
    workload = compile_workload(hour)
    assert time.process_time() - started_s < 2
    assert len(workload) == pytest.approx(360_000, rel=0.01)


def test_a_trace_of_nine_thousand_rows_is_read_in_a_second_of_cpu(tmp_path: Path) -> None:
    rows = "".join(
        f"2023-11-16 {18 + i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}.{i:07d},{i + 1},{i % 90 + 1}\n"
        for i in range(9000)
    )
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    started_s = time.process_time()
    workload = compiled(f"{{arrivals: {{kind: trace, path: {tmp_path}/t.csv}}}}", 9000)
    assert time.process_time() - started_s < 1
    assert len(workload) == 9000
