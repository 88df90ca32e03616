"""The test double itself: only what an event or the host orders is ordered, and everything else goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simulated_device import SimulatedDevice


class Log:
    """What ran, in order."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.ran.append(name)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def device() -> SimulatedDevice:
    return SimulatedDevice()


def test_a_fast_device_does_everything_when_it_is_queued(device: SimulatedDevice, log: Log) -> None:
    device.run(log.of("kernel"))
    device.new().run(log.of("copy"))
    assert log.ran == ["kernel", "copy"]
    assert not device.pending()


def test_a_copy_that_waits_for_nothing_overtakes_slow_kernels(device: SimulatedDevice, log: Log) -> None:
    device.hold("kernels")
    device.run(log.of("kernel"))
    device.new().run(log.of("copy"))
    assert log.ran == ["copy"]
    assert device.pending()
    device.settle()
    assert log.ran == ["copy", "kernel"]
    assert not device.pending()


def test_a_copy_that_waits_runs_once_the_kernels_have(device: SimulatedDevice, log: Log) -> None:
    device.hold("kernels")
    device.run(log.of("kernel"))
    stream = device.new()
    stream.wait(device.engine().record())
    stream.run(log.of("copy"))
    done = stream.record()
    assert log.ran == []
    assert not done.query()
    device.settle()
    assert log.ran == ["kernel", "copy"]
    assert done.query()


def test_an_event_that_was_recorded_too_early_orders_nothing_behind_it(device: SimulatedDevice, log: Log) -> None:
    device.hold("kernels")
    early = device.engine().record()
    device.run(log.of("kernel"))
    stream = device.new()
    stream.wait(early)
    stream.run(log.of("copy"))
    assert log.ran == ["copy"]


def test_the_host_makes_kernels_run_by_waiting_for_a_copy_behind_them(device: SimulatedDevice, log: Log) -> None:
    device.hold("kernels")
    device.run(log.of("first"))
    stream = device.new()
    stream.wait(device.engine().record())
    stream.run(log.of("copy"))
    device.run(log.of("second"))
    stream.record().synchronize()
    assert log.ran == ["first", "copy"]
    assert device.pending()


def test_a_kernel_that_does_not_wait_overtakes_slow_copies(device: SimulatedDevice, log: Log) -> None:
    device.hold("copies")
    device.new().run(log.of("copy"))
    device.run(log.of("kernel"))
    assert log.ran == ["kernel"]


def test_a_kernel_that_waits_makes_a_slow_copy_run_when_the_host_needs_it(device: SimulatedDevice, log: Log) -> None:
    device.hold("copies")
    stream = device.new()
    stream.run(log.of("copy"))
    device.engine().wait(stream.record())
    device.run(log.of("kernel"))
    assert log.ran == []
    device.settle()
    assert log.ran == ["copy", "kernel"]


def test_streams_that_wait_for_each_other_in_turn_run_every_operation_once(device: SimulatedDevice, log: Log) -> None:
    device.hold("copies")
    stream = device.new()
    stream.run(log.of("load"))
    device.engine().wait(stream.record())
    device.run(log.of("forward"))
    stream.wait(device.engine().record())
    stream.run(log.of("save"))
    device.hold(None)
    stream.record().synchronize()
    device.settle()
    assert log.ran == ["load", "forward", "save"]


def test_slow_copies_come_in_the_second_step_after_their_own(device: SimulatedDevice, log: Log) -> None:
    device.hold("copies")
    stream = device.new()
    stream.run(log.of("copy"))
    event = stream.record()
    device.hold("copies")
    assert not event.query()
    device.hold("copies")
    assert event.query()
    stream.run(log.of("another"))
    device.hold(None)
    assert log.ran == ["copy", "another"]
