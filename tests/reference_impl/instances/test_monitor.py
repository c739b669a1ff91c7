"""What an instance reports of its own calls."""

from __future__ import annotations

from reference_impl.instances.monitor import InstanceMonitor
from reference_impl.instances.port import InstanceStatus


def test_a_report_covers_the_window_and_not_only_the_last_heartbeat() -> None:
    monitor = InstanceMonitor("instance-1", 0.0, window_s=5.0)
    monitor.observe(0.25, ok=True)
    monitor.observe(0.5, ok=False)
    first = monitor.snapshot(1.0)
    assert (first.latency_ms, first.error_rate, first.throughput) == (375.0, 0.5, 2.0)
    for second in (2.0, 3.0, 4.0, 5.0):
        monitor.observe(0.3, ok=True)
        report = monitor.snapshot(second)
    assert report.error_rate == 1 / 6
    assert report.throughput == 6 / 5


def test_what_is_older_than_the_window_is_forgotten() -> None:
    monitor = InstanceMonitor("instance-1", 0.0, window_s=5.0)
    monitor.observe(9.0, ok=False)
    for second in range(1, 7):
        report = monitor.snapshot(float(second))
    assert (report.error_rate, report.latency_ms, report.throughput) == (0.0, 0.0, 0.0)


def test_the_memory_of_a_monitor_does_not_grow_with_time() -> None:
    monitor = InstanceMonitor("instance-1", 0.0, window_s=5.0)
    for second in range(1, 1000):
        monitor.snapshot(float(second))
    assert len(monitor._marks) <= 7


def test_a_rejection_is_an_error_without_a_latency() -> None:
    monitor = InstanceMonitor("instance-1", 0.0)
    monitor.observe(1.0, ok=True)
    monitor.rejected()
    report = monitor.snapshot(1.0)
    assert (report.latency_ms, report.error_rate, report.throughput) == (1000.0, 0.5, 2.0)


def test_an_instance_without_calls_reports_zeros_and_not_a_division_by_zero() -> None:
    report = InstanceMonitor("instance-1", 3.0).snapshot(3.0, cpu_usage=0.25, memory_usage=0.5)
    assert (report.latency_ms, report.error_rate, report.throughput) == (0.0, 0.0, 0.0)
    assert (report.cpu_usage, report.memory_usage) == (0.25, 0.5)
    assert report.status is InstanceStatus.HEALTHY


def test_an_instance_that_fails_by_its_own_fault_calls_itself_degraded() -> None:
    monitor = InstanceMonitor("instance-1", 0.0, min_calls=10, degraded_at=0.9)
    for _ in range(9):
        monitor.observe(0.1, ok=False, own_fault=True)
    assert monitor.snapshot(1.0).status is InstanceStatus.HEALTHY  # too few to tell
    monitor.observe(0.1, ok=True)
    assert monitor.snapshot(2.0).status is InstanceStatus.DEGRADED
    monitor.observe(0.1, ok=True)
    assert monitor.snapshot(3.0).status is InstanceStatus.HEALTHY


def test_errors_that_the_endpoint_answered_do_not_degrade_an_instance() -> None:
    monitor = InstanceMonitor("instance-1", 0.0)
    for _ in range(50):
        monitor.observe(0.1, ok=False)
    report = monitor.snapshot(1.0)
    assert report.error_rate == 1.0
    assert report.status is InstanceStatus.HEALTHY
