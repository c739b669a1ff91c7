"""From a scenario to its compiled workload: `compile_workload(scenario)`.

Row k is request k. Its attributes are draws number k (or number prompt id, session, user) of one column a purpose
(`random_streams.generator`), so they depend on neither deployment nor policy, and a longer horizon only adds rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from simulation.scenario.arrival_spec import ClosedArrivals, SessionArrivals, TraceArrivals
from simulation.scenario.arrivals import MAX_REQUESTS, instants
from simulation.scenario.compiled_batches import CompiledBatch
from simulation.scenario.compiled_workload import NONE, CompiledWorkload
from simulation.scenario.distributions import Distribution, Floats
from simulation.scenario.errors import WorkloadError
from simulation.scenario.prompts import MAX_BATCH_BYTES, batch_size_bytes
from simulation.scenario.random_streams import generator
from simulation.scenario.schema import Scenario
from simulation.scenario.traces import Ints, read_trace, slice_trace
from simulation.scenario.workload_spec import Share, WorkloadSpec, ZipfPrompts

__all__ = ["NONE", "CompiledWorkload", "compile_workload"]


@dataclass(frozen=True)
class _Layout:
    """Which rows there are, before their attributes: instants and the chains of turns."""

    intended_s: Floats
    session_id: Ints
    turn: Ints
    think_s: Floats
    chained: bool


def compile_workload(scenario: Scenario) -> CompiledWorkload:
    """Draw every request of `scenario`; raises ScenarioError (a trace, too many requests)."""
    workload = _compile_requests(scenario)
    if scenario.workload.batches:
        workload = replace(workload, batches=_compile_batches(scenario))
    return workload


def _compile_requests(scenario: Scenario) -> CompiledWorkload:
    spec, seed, horizon_s = scenario.workload, scenario.seed, scenario.horizon_s
    if isinstance(spec.arrivals, TraceArrivals):
        return _from_trace(spec, spec.arrivals, seed, horizon_s)
    match spec.arrivals:
        case ClosedArrivals():
            layout = _closed_layout(spec.arrivals, seed, horizon_s)
        case SessionArrivals():
            return _conversations(spec, spec.arrivals, seed, horizon_s)
        case _:
            layout = _open_layout(instants(spec.arrivals, seed, horizon_s))
    prompt_id = _prompt_ids(spec, seed, len(layout.intended_s))
    return _assemble(
        spec,
        seed,
        layout,
        prompt_id,
        _tokens(spec.input_tokens, spec.max_input_tokens, seed, "input tokens", prompt_id),
        _tokens(spec.output_tokens, spec.max_tokens, seed, "output tokens", prompt_id),
    )


def _compile_batches(scenario: Scenario) -> tuple[CompiledBatch, ...]:
    """The batches that are due before the horizon. Draw number i of a batch's columns is its request i."""
    seed = scenario.seed
    compiled = []
    for number, spec in enumerate(scenario.workload.batches):
        if spec.at_s >= scenario.horizon_s:
            continue
        place = np.arange(spec.requests, dtype=np.int64)
        purpose = f"batch {number}"
        inputs = _tokens(
            spec.input_tokens, spec.max_input_tokens, seed, f"{purpose} input tokens", place
        )
        outputs = _tokens(
            spec.output_tokens, spec.max_tokens, seed, f"{purpose} output tokens", place
        )
        batch = CompiledBatch(
            number=number,
            at_s=spec.at_s,
            poll_s=spec.poll_s,
            model=spec.model,
            tenant=spec.tenant,
            max_tokens=spec.max_tokens,
            input_tokens=inputs.astype(np.int32),
            output_tokens=outputs.astype(np.int32),
        )
        size_bytes = batch_size_bytes(batch)
        if size_bytes > MAX_BATCH_BYTES:
            raise WorkloadError(
                f"workload.batches.{number}: {size_bytes / 2**20:,.0f} MB in one batch, at most "
                f"{MAX_BATCH_BYTES // 2**20} are taken; submit fewer requests or shorter prompts at once, in several batches"
            )
        compiled.append(batch)
    return tuple(compiled)


def _assemble(
    spec: WorkloadSpec,
    seed: int,
    layout: _Layout,
    prompt_id: Ints,
    input_tokens: Ints,
    output_tokens: Ints,
    context_tokens: Ints | None = None,
) -> CompiledWorkload:
    n = len(layout.intended_s)
    next_row = np.full(n, NONE, dtype=np.int64)
    if layout.chained and n:
        follows = np.flatnonzero(layout.session_id[1:] == layout.session_id[:-1])
        next_row[follows] = follows + 1
    # Of a session or user as a whole, where there is one.
    owner = np.where(layout.session_id >= 0, layout.session_id, np.arange(n))
    patience_s = np.full(n, np.inf)
    if spec.patience_s is not None:
        patience_s = spec.patience_s.sample(generator(seed, "patience"), n)
    return CompiledWorkload(
        intended_s=layout.intended_s,
        session_id=layout.session_id,
        turn=layout.turn.astype(np.int32),
        think_s=layout.think_s,
        next_row=next_row,
        prompt_id=prompt_id,
        input_tokens=input_tokens.astype(np.int32),
        context_tokens=(
            np.zeros(n, dtype=np.int32)
            if context_tokens is None
            else context_tokens.astype(np.int32)
        ),
        output_tokens=output_tokens.astype(np.int32),
        max_tokens=np.maximum(output_tokens, spec.max_tokens).astype(np.int32),
        stream=generator(seed, "stream").random(n) < spec.stream_fraction,
        model=_mix(spec.models, seed, "model", owner),
        tenant=_mix(spec.tenants, seed, "tenant", owner),
        patience_s=patience_s,
        models=tuple(share.name for share in spec.models),
        tenants=tuple(share.name for share in spec.tenants),
    )


def _open_layout(times: Floats) -> _Layout:
    n = len(times)
    single = np.full(n, NONE, dtype=np.int64)
    return _Layout(times, single, np.zeros(n, dtype=np.int64), np.zeros(n), chained=False)


def _closed_layout(spec: ClosedArrivals, seed: int, horizon_s: float) -> _Layout:
    """Users' turns. However fast the answers are, no user sends more than its think times leave room for."""
    limit = spec.requests_per_user
    mean_s = spec.think_s.mean()
    expected = math.inf if mean_s == 0 else horizon_s / mean_s + 1
    per_user = expected if limit is None else min(limit, expected)
    if spec.users * per_user > MAX_REQUESTS:
        raise WorkloadError(
            f"workload.arrivals: {spec.users} users who think {mean_s:g} s could send more than "
            f"{MAX_REQUESTS:,} requests; set requests_per_user, or lower horizon_s"
        )
    draws = generator(seed, "think")
    ramp_s = np.arange(spec.users) * (spec.ramp_s / spec.users)
    turns = min(math.ceil(per_user), 64)
    blocks: list[Floats] = []
    reached_s = ramp_s
    # Row-major by turn: draw number turn * users + user, whatever the size of a block.
    while (reached_s < horizon_s).any() and (limit is None or turns * len(blocks) < limit):
        block = spec.think_s.sample(draws, turns * spec.users).reshape(turns, spec.users)
        blocks.append(block)
        reached_s = reached_s + block.sum(axis=0)
    think = np.concatenate(blocks)[:limit]
    possible = ramp_s + np.cumsum(think, axis=0) < horizon_s
    user, turn = np.nonzero(possible.T)
    first = turn == 0
    think_s = think[turn, user]
    intended_s = np.where(first, ramp_s[user] + think_s, np.nan)
    order = np.lexsort(
        (turn, user, np.repeat(intended_s[first], possible.sum(axis=0)[possible[0]]))
    )
    return _Layout(
        intended_s[order],
        user[order].astype(np.int64),
        turn[order].astype(np.int64),
        np.where(first, 0.0, think_s)[order],
        chained=True,
    )


def _conversations(
    spec: WorkloadSpec, arrivals: SessionArrivals, seed: int, horizon_s: float
) -> CompiledWorkload:
    """Sessions: each turn's input is the conversation so far plus what the turn adds."""
    starts = instants(arrivals.starts, seed, horizon_s)
    drawn = np.rint(arrivals.turns.sample(generator(seed, "turns"), len(starts)))
    turns = np.clip(drawn, 1, arrivals.max_turns).astype(np.int64)
    n = int(turns.sum())
    if n > MAX_REQUESTS:
        raise WorkloadError(f"workload.arrivals: {n:,} turns; at most {MAX_REQUESTS:,} compile")
    session = np.repeat(np.arange(len(starts), dtype=np.int64), turns)
    first_row = np.cumsum(turns) - turns
    turn = np.arange(n, dtype=np.int64) - first_row[session]
    row = np.arange(n, dtype=np.int64)
    added = _tokens(spec.input_tokens, spec.max_input_tokens, seed, "input tokens", row)
    answered = _tokens(spec.output_tokens, spec.max_tokens, seed, "output tokens", row)
    before = np.cumsum(added + answered) - (added + answered)
    context = before - before[first_row][session] if n else before
    fits = context + added <= spec.max_input_tokens
    think = arrivals.think_s.sample(generator(seed, "think"), n)
    first = turn == 0
    layout = _Layout(
        np.where(first, starts[session], np.nan)[fits],
        session[fits],
        turn[fits],
        np.where(first, 0.0, think)[fits],
        chained=True,
    )
    return _assemble(
        spec,
        seed,
        layout,
        np.arange(int(fits.sum()), dtype=np.int64),
        (context + added)[fits],
        answered[fits],
        context[fits],
    )


def _from_trace(
    spec: WorkloadSpec, arrivals: TraceArrivals, seed: int, horizon_s: float
) -> CompiledWorkload:
    """Instants and lengths of the trace; the rest is drawn. Rows are distinct unless trace or scenario say otherwise."""
    trace = slice_trace(read_trace(arrivals.path), arrivals)
    kept = slice(0, int(np.searchsorted(trace.arrival_s, horizon_s, side="left")))
    times = trace.arrival_s[kept]
    n = len(times)
    inputs, outputs = trace.input_tokens[kept], trace.output_tokens[kept]
    if trace.prompt is not None and spec.prompts.kind == "distinct":
        prompt_id = trace.prompt[kept]
    else:
        prompt_id = _prompt_ids(spec, seed, n)
    # A repeated prompt has the lengths of its first row.
    _, first, which = np.unique(prompt_id, return_index=True, return_inverse=True)
    inputs, outputs = inputs[first][which], outputs[first][which]
    session = trace.session[kept]
    layout = _Layout(times, session, _turns(session), np.zeros(n), chained=False)
    return _assemble(spec, seed, layout, prompt_id, inputs, outputs)


def _turns(session: Ints) -> Ints:
    """The how-manieth row of its session each row is, from 0 (0 without a session)."""
    order = np.argsort(session, kind="stable")
    grouped = session[order]
    starts = np.flatnonzero(np.concatenate(([True], grouped[1:] != grouped[:-1])))
    counts = np.diff(np.concatenate((starts, [len(session)])))
    turn = np.empty(len(session), dtype=np.int64)
    turn[order] = np.arange(len(session)) - np.repeat(starts, counts)
    return np.where(session >= 0, turn, 0)


def _prompt_ids(spec: WorkloadSpec, seed: int, n: int) -> Ints:
    rows = np.arange(n, dtype=np.int64)
    if not isinstance(spec.prompts, ZipfPrompts):
        return rows
    prompts = spec.prompts
    cumulative = np.cumsum(np.arange(1.0, prompts.prompts + 1) ** -prompts.exponent)
    draws = generator(seed, "prompt").random(n)
    rank = np.searchsorted(cumulative / cumulative[-1], draws, side="right")
    popular = generator(seed, "popular").random(n) < prompts.share
    return np.where(popular, rank, prompts.prompts + rows).astype(np.int64)


def _tokens(lengths: Distribution, most: int, seed: int, purpose: str, prompt_id: Ints) -> Ints:
    """Lengths by prompt: prompt p has draw number p."""
    if not len(prompt_id):
        return np.empty(0, dtype=np.int64)
    drawn = lengths.sample(generator(seed, purpose), int(prompt_id.max()) + 1)
    return np.clip(np.rint(drawn[prompt_id]), 1, most).astype(np.int64)


def _mix(shares: tuple[Share, ...], seed: int, purpose: str, owner: Ints) -> npt.NDArray[np.int16]:
    if len(shares) == 1 or not len(owner):
        return np.zeros(len(owner), dtype=np.int16)
    cumulative = np.cumsum([share.weight for share in shares])
    draws = generator(seed, purpose).random(int(owner.max()) + 1)[owner]
    return np.searchsorted(cumulative / cumulative[-1], draws, side="right").astype(np.int16)
