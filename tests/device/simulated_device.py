"""A test double of a device with streams, on the CPU: what is queued takes effect as late, or as early, as is legal.

It is no model of a GPU. It serves to test the logic of the kit's scenarios about the order on a device, of the
reference connector's events, and of the mutants that lack one: whatever an event does not order runs in the worst
order, every time. Operations on a stream run in the order of the stream; a wait holds its stream up until the event has
come to pass; and the host makes things happen by waiting for them. Nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvconform.device import Held

# A slow copy begins in the second step after the one that queued it.
STEPS_OF_A_SLOW_COPY = 2


@dataclass(frozen=True)
class SimulatedEvent:
    """The point behind the first ``position`` operations of a stream."""

    stream: SimulatedStream
    position: int

    def query(self) -> bool:
        return self.stream.done >= self.position

    def synchronize(self) -> None:
        self.stream.force(self.position)


@dataclass(frozen=True)
class _Operation:
    queued_at: int
    work: Callable[[], None] | None = None
    waits_for: SimulatedEvent | None = None


@dataclass(eq=False)
class SimulatedStream:
    """A queue of operations of which the first ``done`` have run."""

    device: SimulatedDevice
    name: str
    operations: list[_Operation] = field(default_factory=list)
    done: int = 0

    def run(self, work: Callable[[], None]) -> None:
        self.operations.append(_Operation(self.device.step, work=work))
        self.device.go_on()

    def wait(self, event: SimulatedEvent) -> None:
        self.operations.append(_Operation(self.device.step, waits_for=event))
        self.device.go_on()

    def record(self) -> SimulatedEvent:
        return SimulatedEvent(self, len(self.operations))

    def force(self, position: int) -> None:
        """Run the first ``position`` operations, and what they wait for."""
        while self.done < position:
            operation = self.operations[self.done]
            if operation.waits_for is not None and not operation.waits_for.query():
                # This may run more of this stream than was asked for.
                operation.waits_for.synchronize()
            else:
                self._run_next()
        self.device.go_on()

    def go_on(self) -> bool:
        """Run what nothing holds up; whether that was something."""
        before = self.done
        while self.done < len(self.operations):
            operation = self.operations[self.done]
            waiting = operation.waits_for is not None and not operation.waits_for.query()
            if waiting or self.device.holds(self, operation):
                break
            self._run_next()
        return self.done > before

    def _run_next(self) -> None:
        operation = self.operations[self.done]
        self.done += 1
        if operation.work is not None:
            operation.work()


class SimulatedDevice:
    """The engine's stream and any number of others. It is the kit's DeviceWork, and the reference's Streams."""

    def __init__(self) -> None:
        self.step = 0
        self._held: Held | None = None
        self._engine = SimulatedStream(self, "engine")
        self._streams = [self._engine]

    # -- for the connector: kvconform.reference._device_streams.Streams --

    def engine(self) -> SimulatedStream:
        return self._engine

    def new(self) -> SimulatedStream:
        self._streams.append(SimulatedStream(self, f"stream {len(self._streams)}"))
        return self._streams[-1]

    # -- for the engine: kvconform.device.DeviceWork --

    def run(self, work: Callable[[], None]) -> None:
        self._engine.run(work)

    def hold(self, what: Held | None) -> None:
        self._held = what
        self.step += 1
        self.go_on()

    def pending(self) -> bool:
        return self._engine.done < len(self._engine.operations)

    def settle(self) -> None:
        self._engine.force(len(self._engine.operations))

    # -- how it goes on --

    def holds(self, stream: SimulatedStream, operation: _Operation) -> bool:
        """Whether an operation that could run is slow to begin."""
        if self._held == "kernels":
            return stream is self._engine
        if self._held == "copies":
            return stream is not self._engine and self.step < operation.queued_at + STEPS_OF_A_SLOW_COPY
        return False

    def go_on(self) -> None:
        """Run whatever may run by now."""
        while any(stream.go_on() for stream in self._streams):
            pass
