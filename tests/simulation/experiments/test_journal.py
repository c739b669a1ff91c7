"""Results on disk: kept line by line, found again, never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.experiments.errors import ExperimentError
from simulation.experiments.journal import IDENTITY_FILE, RESULTS_FILE, Journal
from simulation.experiments.measuring import Row

ROW: Row = {"latency_mean_s": 0.1 + 0.2, "cost_usd": None, "status": "done", "settled": True}


def test_a_row_comes_back_exactly(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
    again = Journal(tmp_path, {}, resume=True)
    assert again.find("a") == ROW
    assert again.find("b") is None


def test_a_row_is_on_disk_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
        assert Journal(tmp_path, {}, resume=True).find("a") == ROW


def test_results_are_not_overwritten_without_being_asked_to_go_on(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
    with pytest.raises(ExperimentError, match="holds results already; --resume"):
        Journal(tmp_path, {}, resume=False)


def test_nothing_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    with Journal(tmp_path / "new", {}, resume=False):
        pass
    assert not (tmp_path / "new").exists()


def test_a_line_torn_by_a_crash_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
    with (tmp_path / RESULTS_FILE).open("a") as file:
        file.write('{"key": "b", "row": {"lat')
    with Journal(tmp_path, {}, resume=True) as journal:
        assert journal.find("b") is None
        journal.record("c", ROW)
    again = Journal(tmp_path, {}, resume=True)
    assert (again.find("a"), again.find("c"), len(again)) == (ROW, ROW, 2)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
    with (tmp_path / RESULTS_FILE).open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(ExperimentError, match=r"results\.jsonl: line 2 is damaged"):
        Journal(tmp_path, {}, resume=True)


@pytest.mark.parametrize("field", ["commit", "versions"])
def test_results_of_other_code_are_not_gone_on_with(tmp_path: Path, field: str) -> None:
    with Journal(tmp_path, {field: "one"}, resume=False) as journal:
        journal.record("a", ROW)
    with pytest.raises(ExperimentError, match=f"made with another {field}"):
        Journal(tmp_path, {field: "two"}, resume=True)


@pytest.mark.parametrize("field", ["experiment", "scenario", "asked"])
def test_results_of_another_question_are_not_gone_on_with(tmp_path: Path, field: str) -> None:
    with Journal(tmp_path, {field: "one"}, resume=False) as journal:
        journal.record("a", ROW)
    with pytest.raises(ExperimentError, match=r"the results there are of (an)?other \w+"):
        Journal(tmp_path, {field: "two"}, resume=True)


def test_results_without_a_word_of_their_origin_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, {}, resume=False) as journal:
        journal.record("a", ROW)
    (tmp_path / IDENTITY_FILE).unlink()
    with pytest.raises(ExperimentError, match="cannot be read"):
        Journal(tmp_path, {}, resume=True)
