"""The injector in this process, on gevent, against a real server: who is sent when, and what becomes of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import numpy as np
import pytest

from loadtests.client_rows import ClientRow, RowWriter, read_client_rows, rows_file
from loadtests.http_client import HttpClient
from loadtests.injector import Injector, InjectorOptions
from loadtests.metrics import ClientMetrics
from reference_impl.messages import TAG_HEADER, RequestTag
from simulation.scenario.workload import CompiledWorkload
from tests.loadtests.gevent_server import WHOLE, Request, serving
from tests.loadtests.workloads import compiled

LIMIT_S = 10.0
TOLERANCE_S = 0.3  # a shared machine may keep a process waiting so long


def at_once(request: Request, sock: Any) -> bool:
    sock.sendall(WHOLE)
    return True


def after(seconds: float) -> Callable[[Request, Any], bool]:
    def answer(request: Request, sock: Any) -> bool:
        gevent.sleep(seconds)
        return at_once(request, sock)

    return answer


def replay(
    workload: CompiledWorkload,
    answer: Callable[[Request, Any], bool],
    folder: Path,
    *,
    stop_after_s: float | None = None,
    metrics: ClientMetrics | None = None,
    **options: Any,
) -> list[ClientRow]:
    """The rows of a run of one injector, in order of request."""
    with serving(answer) as url:
        injector = Injector(
            workload,
            range(len(workload)),
            HttpClient(url),
            RowWriter(rows_file(folder, 0)),
            InjectorOptions(**({"horizon_s": 2.0, "drain_s": 2.0} | options)),
            metrics=metrics or ClientMetrics(),
        )
        if stop_after_s is not None:
            gevent.spawn_later(stop_after_s, injector.stop)
        with gevent.Timeout(LIMIT_S):
            injector.run(monotonic())
        assert injector.in_flight == 0
    return sorted(read_client_rows(folder), key=lambda row: row.request_id)


def singles(*intended_s: float, patience_s: float = np.inf) -> CompiledWorkload:
    """Single requests that do not stream, at these instants."""
    n = len(intended_s)
    base = compiled("{kind: constant, rate_per_s: 1}", horizon_s=n + 0.5)
    assert len(base) == n
    return dataclasses.replace(
        base,
        intended_s=np.array(intended_s),
        patience_s=np.full(n, patience_s),
        stream=np.zeros(n, dtype=np.bool_),
    )


def test_requests_leave_when_they_are_due_however_slow_the_answers(tmp_path: Path) -> None:
    rows = replay(singles(0.0, 0.05, 0.1, 0.15), after(0.5), tmp_path)
    assert [row.outcome for row in rows] == ["ok"] * 4
    assert [row.intended_s for row in rows] == pytest.approx([0.0, 0.05, 0.1, 0.15])
    for row in rows:
        assert 0.0 <= row.sent_s - row.intended_s < TOLERANCE_S
        assert row.sent_s <= row.done_s
        assert row.done_s - row.intended_s >= 0.5


def test_nothing_is_sent_that_is_due_at_the_horizon_or_later(tmp_path: Path) -> None:
    rows = replay(singles(0.0, 0.1, 0.2), at_once, tmp_path, horizon_s=0.2)
    assert [row.request_id for row in rows] == [0, 1]


def test_what_is_in_flight_when_the_drain_ends_is_unfinished(tmp_path: Path) -> None:
    rows = replay(singles(0.0, 0.1), after(LIMIT_S), tmp_path, horizon_s=0.2, drain_s=0.1)
    assert [(row.outcome, row.attempts) for row in rows] == [("unfinished", 1)] * 2
    assert all(row.done_s == pytest.approx(0.3, abs=TOLERANCE_S) for row in rows)


def test_a_stop_accounts_for_every_request_that_was_due(tmp_path: Path) -> None:
    workload = singles(0.0, 0.0, 0.0, 1.9)
    rows = replay(
        workload, after(LIMIT_S), tmp_path, stop_after_s=0.1, max_in_flight=2, drain_s=0.0
    )
    assert [(row.request_id, row.outcome, row.attempts) for row in rows] == [
        (0, "unfinished", 1),
        (1, "unfinished", 1),
        (2, "unfinished", 0),
    ]
    assert rows[2].sent_s == rows[2].done_s


def test_requests_beyond_the_bound_wait_in_line_are_counted_and_not_lost(tmp_path: Path) -> None:
    metrics = ClientMetrics()
    rows = replay(singles(0.0, 0.0, 0.0), after(0.2), tmp_path, max_in_flight=1, metrics=metrics)
    assert [row.overflow for row in rows] == [False, True, True]
    assert [row.outcome for row in rows] == ["ok"] * 3
    assert rows[2].sent_s - rows[2].intended_s >= 0.4, "the wait in line is part of the lag"
    assert metrics.counts["overflow"] == 2


def test_the_next_turn_follows_the_answer_and_the_think_time(tmp_path: Path) -> None:
    workload = compiled(
        "{kind: closed, users: 2, think_s: {kind: constant, value: 0.1}, requests_per_user: 3}",
        horizon_s=3.0,
    )
    rows = {row.request_id: row for row in replay(workload, after(0.1), tmp_path)}
    assert len(rows) == 6
    for k in np.flatnonzero(workload.next_row >= 0).tolist():
        following = rows[int(workload.next_row[k])]
        assert following.intended_s == pytest.approx(rows[k].done_s + 0.1, abs=1e-3)
        assert 0.0 <= following.sent_s - following.intended_s < TOLERANCE_S


def test_a_session_goes_on_after_a_turn_that_failed(tmp_path: Path) -> None:
    workload = compiled(
        "{kind: closed, users: 1, think_s: {kind: constant, value: 0.05}, requests_per_user: 2}",
        horizon_s=2.0,
    )
    rows = replay(workload, lambda request, sock: False, tmp_path)
    assert [row.outcome for row in rows] == ["connection_error"] * 2


def test_turns_that_would_come_after_the_horizon_are_no_arrivals(tmp_path: Path) -> None:
    workload = compiled(
        "{kind: closed, users: 1, think_s: {kind: constant, value: 0.2}}", horizon_s=0.5
    )
    rows = replay(workload, after(0.2), tmp_path, horizon_s=0.5)
    assert len(workload) == 2
    assert [row.request_id for row in rows] == [0]


def refusing(times: int, retry_after: bytes = b"0.2") -> Callable[[Request, Any], bool]:
    """429 so many times, then an answer."""
    left = times

    def answer(request: Request, sock: Any) -> bool:
        nonlocal left
        left -= 1
        if left >= 0:
            sock.sendall(
                b"HTTP/1.1 429 x\r\nretry-after: "
                + retry_after
                + b"\r\ncontent-length: 2\r\n\r\n{}"
            )
            return True
        return at_once(request, sock)

    return answer


def test_a_refusal_is_final_unless_client_retries_are_on(tmp_path: Path) -> None:
    rows = replay(singles(0.0), refusing(1), tmp_path)
    assert [(row.outcome, row.status, row.attempts) for row in rows] == [("rate_limited", 429, 1)]


def test_a_retry_waits_as_asked_and_the_wait_is_part_of_the_latency(tmp_path: Path) -> None:
    metrics = ClientMetrics()
    rows = replay(singles(0.0), refusing(2), tmp_path, retries=2, metrics=metrics)
    assert [(row.outcome, row.attempts) for row in rows] == [("ok", 3)]
    assert rows[0].done_s - rows[0].intended_s >= 0.4
    assert rows[0].sent_s < 0.2, "sent is the first attempt"
    assert (metrics.counts["requests"], metrics.counts["attempts"]) == (1, 3)


def test_a_client_out_of_patience_leaves_instead_of_retrying(tmp_path: Path) -> None:
    workload = singles(0.0, patience_s=0.1)
    rows = replay(workload, refusing(2, b"5"), tmp_path, retries=2)
    assert [(row.outcome, row.attempts) for row in rows] == [("cancelled", 1)]
    assert rows[0].done_s == pytest.approx(0.1, abs=TOLERANCE_S)


def test_each_attempt_carries_its_tag_and_the_key_of_its_tenant(tmp_path: Path) -> None:
    seen: list[Request] = []
    refuse = refusing(1, b"0")

    def answer(request: Request, sock: Any) -> bool:
        seen.append(request)
        return refuse(request, sock)

    workload = singles(0.0, 0.1)
    tenants = np.array([1, 0], dtype=np.int16)
    workload = dataclasses.replace(workload, tenant=tenants, tenants=("a", "b"))
    replay(workload, answer, tmp_path, retries=1, api_keys=("key-a", "key-b"))
    tags = [RequestTag.decode(request.headers[TAG_HEADER]) for request in seen]
    assert [(tag.request_id, tag.attempt) for tag in tags] == [(0, 0), (0, 100), (1, 0)]
    assert tags[0].input_tokens == int(workload.input_tokens[0])
    assert [request.headers["x-api-key"] for request in seen] == ["key-b", "key-b", "key-a"]
    assert seen[0].headers["anthropic-version"] == "2023-06-01"


def test_tags_and_keys_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    seen: list[Request] = []

    def answer(request: Request, sock: Any) -> bool:
        seen.append(request)
        return at_once(request, sock)

    replay(singles(0.0), answer, tmp_path, tags=False)
    assert TAG_HEADER not in seen[0].headers
    assert "x-api-key" not in seen[0].headers


def test_rows_survive_a_kill_but_for_a_last_line_that_it_cut(tmp_path: Path) -> None:
    replay(singles(0.0, 0.05), at_once, tmp_path)
    path = rows_file(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-5])
    assert [row.request_id for row in read_client_rows(tmp_path)] == [0]


def test_a_run_folder_with_rows_is_not_written_over(tmp_path: Path) -> None:
    RowWriter(rows_file(tmp_path, 0)).close()
    with pytest.raises(FileExistsError):
        RowWriter(rows_file(tmp_path, 0))
