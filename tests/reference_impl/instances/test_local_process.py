"""Instances as child processes, on real loops: announced, drained, killed, crashed, orphaned. Every wait has a limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import uvloop

from reference_impl.errors import UpstreamFailed
from reference_impl.instances.local_process import LocalProcessProvider, service_command
from reference_impl.instances.port import InstanceMetrics
from tests.reference_impl.instances.child_program import (
    LIMIT_S,
    RecordingPort,
    children,
    forget_other_children,
    provider_of,
    write_program,
)

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write_program(tmp_path)


@pytest.fixture(autouse=True)
def only_our_children() -> None:
    forget_other_children()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run on a real loop, within a limit; no child may be left."""
    loop_factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def limited(work: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.timeout(LIMIT_S):
            await work()

    def run_limited(work: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(limited(work))
        assert children() == [], "a child process was left behind"

    return run_limited


def test_a_stopped_instance_drains_ends_and_closes_its_port(program: Path, run: Run) -> None:
    async def work() -> None:
        async with provider_of(program) as provider:
            running = await provider.start("instance-1")
            await provider.stop("instance-1", LIMIT_S)
            assert (program.parent / "instance-1.drained").read_text() == "yes"
            assert isinstance(running.port, RecordingPort)
            assert running.port.closed
            assert running.ended is not None
            assert running.ended.cancelled()
            assert provider.metrics() == []
            await provider.stop("instance-1", 0.0)  # without effect

    run(work)


def test_an_instance_that_ignores_the_request_to_end_is_killed(
    program: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reference_impl.instances.supervised._EXIT_GRACE_S", 0.1)

    async def work() -> None:
        async with provider_of(program, "stubborn") as provider:
            await provider.start("instance-1")
            await provider.stop("instance-1", 0.1)
            assert children() == []
            assert not (program.parent / "instance-1.drained").exists()

    run(work)


def test_a_failing_start_is_one_line_with_the_last_words_of_the_child(
    program: Path, run: Run
) -> None:
    async def work() -> None:
        async with provider_of(program, "fails") as provider:
            with pytest.raises(UpstreamFailed) as failure:
                await provider.start("instance-1")
        assert failure.value.message == (
            "instance-1: exited with status 3 before it was ready: "
            "ValueError: upstream_url: 'nowhere' is not a URL"
        )

    run(work)


def test_a_program_that_does_not_exist_is_one_line(tmp_path: Path, run: Run) -> None:
    async def work() -> None:
        provider = LocalProcessProvider(
            lambda _: [str(tmp_path / "no-such-program")],
            RecordingPort,
            lambda _: 0.0,
            capacity=1,
            heartbeat_s=1.0,
        )
        with pytest.raises(UpstreamFailed, match="No such file") as failure:
            await provider.start("instance-1")
        assert "\n" not in failure.value.message

    run(work)


def test_an_instance_that_is_never_ready_fails_and_leaves_no_process(
    program: Path, run: Run
) -> None:
    async def work() -> None:
        async with provider_of(program, "mute", ready_limit_s=0.3) as provider:
            with pytest.raises(UpstreamFailed, match=r"not ready within 0\.3 s$"):
                await provider.start("instance-1")
            assert children() == []

    run(work)


def test_a_cancelled_start_leaves_nothing_behind(program: Path, run: Run) -> None:
    begun = program.parent / "begun"
    os.mkfifo(begun)

    async def work() -> None:
        async with provider_of(program, "mute") as provider:
            start = asyncio.create_task(provider.start("instance-1"))
            await asyncio.to_thread(begun.read_bytes)
            assert len(children()) == 1
            # It may report before it is ready: acknowledged, lest it take itself for an orphan, but not shown.
            assert provider.heartbeat(InstanceMetrics("instance-1"))
            assert provider.metrics() == []
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            assert children() == []
            assert provider.metrics() == []
            assert not provider.heartbeat(InstanceMetrics("instance-1"))

    run(work)


def test_a_crash_is_told_with_its_status_and_last_words(program: Path, run: Run) -> None:
    os.mkfifo(program.parent / "crash")

    async def work() -> None:
        async with provider_of(program, "crashes") as provider:
            running = await provider.start("instance-1")
            assert running.ended is not None
            descriptor = await asyncio.to_thread(os.open, program.parent / "crash", os.O_WRONLY)
            os.close(descriptor)
            assert await running.ended == "exited with status 7: MemoryError: no room"
            assert provider.metrics() == []

    run(work)


def test_a_crash_in_what_is_left_of_the_boot_time_fails_the_start_at_once(
    program: Path, run: Run
) -> None:
    os.mkfifo(program.parent / "crash")

    async def work() -> None:
        async with provider_of(program, "crashes", boot_s=100 * LIMIT_S) as provider:
            start = asyncio.create_task(provider.start("instance-1"))
            await asyncio.to_thread((program.parent / "crash").write_bytes, b"")
            with pytest.raises(UpstreamFailed, match="MemoryError: no room while it booted"):
                await start
            assert children() == []

    run(work)


def test_a_killed_instance_is_told_and_is_no_zombie(program: Path, run: Run) -> None:
    async def work() -> None:
        async with provider_of(program) as provider:
            running = await provider.start("instance-1")
            assert running.ended is not None
            (child,) = children()
            os.kill(child.pid, signal.SIGKILL)
            assert await running.ended == "was killed by SIGKILL"
            assert not psutil.pid_exists(child.pid)

    run(work)


def test_a_child_that_writes_much_before_it_is_ready_is_not_stuck(program: Path, run: Run) -> None:
    async def work() -> None:
        async with provider_of(program, "chatty") as provider:
            await provider.start("instance-1")

    run(work)


def test_reports_of_running_instances_are_kept_and_others_ignored(program: Path, run: Run) -> None:
    async def work() -> None:
        async with provider_of(program) as provider:
            assert not provider.heartbeat(InstanceMetrics("instance-1"))
            await provider.start("instance-1")
            assert provider.heartbeat(InstanceMetrics("instance-1", cpu_usage=0.5, capacity=4))
            assert [m.cpu_usage for m in provider.metrics()] == [0.5]
            await provider.stop("instance-1", LIMIT_S)
            assert not provider.heartbeat(InstanceMetrics("instance-1"))

    run(work)


def test_closing_lets_an_instance_whose_drain_is_under_way_finish(program: Path, run: Run) -> None:
    for pipe in ("draining", "finish"):
        os.mkfifo(program.parent / pipe)

    async def work() -> None:
        async with provider_of(program, "slow") as provider:
            running = await provider.start("instance-1")
            stop = asyncio.create_task(provider.stop("instance-1", LIMIT_S))
            await asyncio.to_thread((program.parent / "draining").read_bytes)
            stop.cancel()  # as a fleet does that is closed
            await asyncio.gather(stop, return_exceptions=True)
            assert len(children()) == 1
            close = asyncio.create_task(provider.aclose())
            await asyncio.to_thread((program.parent / "finish").write_bytes, b"")
            await close
            assert (program.parent / "instance-1.drained").read_text() == "yes"
            assert isinstance(running.port, RecordingPort)
            assert running.port.closed

    run(work)


def test_closing_ends_every_instance(program: Path, run: Run) -> None:
    async def work() -> None:
        async with provider_of(program) as provider:
            await asyncio.gather(*(provider.start(f"instance-{n}") for n in range(3)))
            assert len(children()) == 3
            await provider.aclose()
            assert children() == []

    run(work)


def wait_until_gone(pid: int) -> None:
    """Return when the process has ended: a zombie is for its new parent to reap."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in range(int(LIMIT_S / 0.01)):
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(0.01)
                return
        raise AssertionError(f"process {pid} is still there after {LIMIT_S} s")


PARENT = """
import asyncio, sys
from reference_impl.instances.local_process import LocalProcessProvider

async def main():
    provider = LocalProcessProvider(
        lambda name: [sys.executable, "-I", "-S", sys.argv[1], "stubborn", name, sys.argv[2]],
        lambda url: None, lambda _: 0.0, capacity=1, heartbeat_s=1.0,
    )
    await provider.start("instance-1")
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_child_does_not_outlive_a_parent_that_is_killed(program: Path, run: Run) -> None:
    async def work() -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PARENT,
            str(program),
            str(program.parent),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert parent.stdout is not None
        assert await parent.stdout.readline() == b"started\n"
        (grandchild,) = psutil.Process(parent.pid).children()
        parent.kill()
        await parent.wait()
        await asyncio.to_thread(wait_until_gone, grandchild.pid)

    run(work)


def test_the_projects_own_instances_ignore_modules_of_the_current_folder() -> None:
    command = service_command(Path("run") / "config.json")("instance-7")
    assert command[:5] == [sys.executable, "-P", "-m", "reference_impl.service", "instance"]
    assert command[5:] == ["--config", str(Path("run") / "config.json"), "--id", "instance-7"]
