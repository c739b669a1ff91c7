"""A scenario's faults take effect in virtual time, when it says."""

import pytest

from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from simulation.scenario.errors import ScenarioError
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate


class Sink:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.events: list[SystemEvent] = []

    def request(self, record: RequestRecord, /) -> None:
        self.records.append(record)

    def station(self, sample: StationSample, /) -> None:
        """Not of interest here."""

    def event(self, event: SystemEvent, /) -> None:
        self.events.append(event)


def played(faults: list[dict[str, object]]) -> Sink:
    """One request a second at an endpoint that takes 0.1 s, under these faults."""
    scenario = load_scenario(
        "mm1",
        {
            "workload.arrivals": {"kind": "constant", "rate_per_s": 1},
            "endpoint.service.service_s": 0.1,
            "horizon_s": 30.5,
            "faults": faults,
        },
    )
    sink = Sink()
    simulate(scenario, compile_workload(scenario), sink)
    return sink


def test_a_slow_link_adds_its_latency_to_both_ways_while_it_lasts() -> None:
    fault = {
        "kind": "link_latency",
        "at_s": 9.5,
        "duration_s": 10,
        "link": "gateway_instance",
        "extra_s": 0.05,
    }
    sink = played([fault])
    for record in sink.records:
        slow = 9.5 < record.intended_s < 19.5
        assert record.done_s - record.intended_s == pytest.approx(0.2 if slow else 0.1)
    told = [(e.t_s, e.subject, e.detail["state"]) for e in sink.events if e.kind == "fault"]
    assert told == [(9.5, "gateway_instance", "began"), (19.5, "gateway_instance", "ended")]


def test_slow_links_that_overlap_add_up_and_leave_nothing_behind() -> None:
    spike: dict[str, object] = {"kind": "link_latency", "link": "client_gateway", "extra_s": 0.05}
    sink = played(
        [{**spike, "at_s": 4.5, "duration_s": 10}, {**spike, "at_s": 9.5, "duration_s": 10}]
    )
    latencies = {round(r.intended_s): r.done_s - r.intended_s for r in sink.records}
    assert latencies[4] == pytest.approx(0.1)
    assert latencies[6] == pytest.approx(0.2)
    assert latencies[12] == pytest.approx(0.3)
    assert latencies[17] == pytest.approx(0.2)
    assert latencies[25] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("endpoint_429", "rate_limited"),
        ("endpoint_529", "overloaded"),
        ("endpoint_500", "server_error"),
    ],
)
def test_the_endpoint_refuses_while_its_fault_lasts(kind: str, outcome: str) -> None:
    # The endpoint counts from its first request, which comes after one second.
    sink = played([{"kind": kind, "at_s": 9.5, "duration_s": 10}])
    outcomes = {round(r.intended_s): r.outcome for r in sink.records}
    assert [second for second, found in outcomes.items() if found == outcome] == list(range(11, 21))
    assert [second for second, found in outcomes.items() if found == "ok"] == [
        *range(1, 11),
        *range(21, 31),
    ]


def test_a_share_of_the_attempts_fails_by_the_luck_of_each() -> None:
    fault: dict[str, object] = {"kind": "endpoint_500", "at_s": 0, "duration_s": 100}
    half = {
        r.request_id for r in played([{**fault, "probability": 0.5}]).records if r.status >= 500
    }
    most = {
        r.request_id for r in played([{**fault, "probability": 0.9}]).records if r.status >= 500
    }
    assert 5 < len(half) < 25
    assert half < most


def test_a_fault_that_nothing_can_play_is_refused_and_not_left_out() -> None:
    with pytest.raises(ScenarioError, match=r"^mm1 with overrides: faults\.0: there is no broker"):
        played([{"kind": "broker_outage", "at_s": 3}])


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("redis_outage", "cache.shared"), ("database_outage", "database.ledger")],
)
def test_an_outage_of_a_server_that_there_is_not_names_the_setting_that_it_needs(
    kind: str, setting: str
) -> None:
    with pytest.raises(
        ScenarioError,
        match=rf"^mm1 with overrides: faults\.0: there is no .*set deployment\.{setting}",
    ):
        played([{"kind": kind, "at_s": 3}])
