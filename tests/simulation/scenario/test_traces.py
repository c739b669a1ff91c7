"""Recorded traces: three formats, and what is wrong with a bad one."""

from pathlib import Path

import pytest

from simulation.scenario.arrival_spec import TraceArrivals
from simulation.scenario.errors import TraceError
from simulation.scenario.traces import read_trace, slice_trace

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.9799600,4808,10
2023-11-17 00:00:00.0319600,3180,8
2023-11-17 00:00:02.5,110,27
"""
BURST_GPT = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,abc,1.0,ChatGPT,472,18,490,Conversation log
45,xyz,1.0,GPT-4,1087,0,1087,API log
118,abc,1.0,ChatGPT,417,276,693,Conversation log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0, 3]}
{"timestamp": 3000, "input_length": 6755, "output_length": 7, "hash_ids": [0, 1, 2]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_azure_trace_counts_time_from_its_first_row_across_midnight(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, AZURE))
    assert trace.arrival_s == pytest.approx([0, 0.052, 2.52004])
    assert trace.input_tokens.tolist() == [4808, 3180, 110]
    assert trace.output_tokens.tolist() == [10, 8, 27]
    assert trace.session.tolist() == [-1, -1, -1]


def test_a_burst_gpt_trace_keeps_its_sessions_and_raises_failed_answers_to_one_token(
    tmp_path: Path,
) -> None:
    trace = read_trace(write(tmp_path, BURST_GPT))
    assert trace.arrival_s.tolist() == [0, 40, 113]
    assert trace.input_tokens.tolist() == [472, 1087, 417]
    assert trace.output_tokens.tolist() == [18, 1, 276]
    assert trace.session[0] == trace.session[2] != trace.session[1]


def test_a_burst_gpt_trace_without_sessions_is_read_too(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,4,2,6,x\n"
    assert read_trace(write(tmp_path, text)).session.tolist() == [-1]


def test_a_mooncake_trace_knows_equal_prompts_by_their_blocks(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, MOONCAKE))
    assert trace.arrival_s.tolist() == [0, 3, 3]
    assert trace.prompt is not None
    assert trace.prompt.tolist() == [0, 1, 0]


def test_a_byte_order_mark_windows_lines_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + AZURE.replace("\n", "\r\n") + "\r\n"
    assert len(read_trace(write(tmp_path, text)).arrival_s) == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: columns (none) are no known trace"),
        ("time,tokens\n1,2\n", "line 1: columns time, tokens are no known trace; expected TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request in it"),
        (AZURE + "2023-11-17 00:00:03,x,4\n", "line 5: ContextTokens 'x' is not a count of tokens"),
        (AZURE + "2023-11-17 00:00:03,-7,4\n", "line 5: ContextTokens '-7' is not a count"),
        (AZURE + "2023-11-17 00:00:03,7.5,4\n", "line 5: ContextTokens '7.5' is not a count"),
        (AZURE + "2023-11-17 00:00:03,7,nan\n", "line 5: GeneratedTokens 'nan' is not a count"),
        (AZURE + "yesterday,7,4\n", "line 5: TIMESTAMP 'yesterday' is not a time"),
        (AZURE + "2023-11-17 00:00:03,7\n", "line 5: 2 fields, expected 3"),
        (AZURE + "2023-11-17 00:00:01,7,4\n", "line 5: time goes back by 1.500 s; sort the trace"),
        (BURST_GPT + "soon,a,1,m,2,3,5,x\n", "line 5: Timestamp 'soon' is not a time"),
        (MOONCAKE + "{\n", "line 4: "),
        (MOONCAKE + '{"timestamp": 1}\n', "line 4: Object missing required field `input_length`"),
        (
            MOONCAKE + '{"timestamp": 4000, "input_length": -5, "output_length": 1}\n',
            "line 4: input_length '-5' is not a count",
        ),
        (MOONCAKE.replace("3000", "9000", 1), "line 3: time goes back by 6.000 s"),
    ],
)  # fmt: skip
def test_a_malformed_trace_is_refused_with_its_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert complaint in message
    assert "\n" not in message


def test_a_missing_or_binary_trace_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such trace file"):
        read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not a text file"):
        read_trace(tmp_path / "binary")


def test_a_slice_counts_from_its_start_and_runs_at_its_speed(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, BURST_GPT))
    spec = TraceArrivals(path="trace", start_s=10, end_s=113.5, speed=2)
    kept = slice_trace(trace, spec)
    assert kept.arrival_s.tolist() == [15, 51.5]
    assert kept.input_tokens.tolist() == [1087, 417]
    limited = slice_trace(trace, TraceArrivals(path="trace", limit=1))
    assert limited.arrival_s.tolist() == [0]


def test_an_empty_slice_says_how_long_the_trace_is(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, BURST_GPT))
    with pytest.raises(TraceError, match=r"the trace runs from 0 to 113\.0 s"):
        slice_trace(trace, TraceArrivals(path="trace", start_s=500))
