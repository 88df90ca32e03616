"""Streams and events in the few words that a connector needs: on CUDA those of torch, on the CPU none.

Work is queued on a stream and runs in the order of that stream; nothing else orders it but an event that was recorded
behind it and is waited for. The host is ahead of all streams. On the CPU everything is done when it is queued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream."""

    def query(self) -> bool:
        """Whether everything queued before that point is done."""

    def synchronize(self) -> None:
        """Make the host wait for it."""


class Stream(Protocol):
    """A queue of work on the device."""

    def run(self, work: Callable[[], None]) -> None:
        """Queue operations on device tensors; ``work`` must not wait for their results."""

    def record(self) -> Event:
        """The point behind all that is queued now."""

    def wait(self, event: Event) -> None:
        """Let what is queued from now on run behind ``event``."""


class Streams(Protocol):
    """The streams of one device."""

    def engine(self) -> Stream:
        """The stream on which the caller's kernels are queued: the engine's, inside a hook."""

    def new(self) -> Stream:
        """A stream of one's own."""


def streams_of(device: torch.device) -> Streams:
    """The streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else HostOrder()


class CudaStreams:
    """torch's streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def engine(self) -> Stream:
        # Asked for every time: it is a property of the thread, and vLLM may change it between two steps.
        return _CudaStream(torch.cuda.current_stream(self._device))

    def new(self) -> Stream:
        return _CudaStream(torch.cuda.Stream(self._device))


class _CudaStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def run(self, work: Callable[[], None]) -> None:
        # Temporary tensors are allocated on this stream, so torch reuses their memory only behind this work.
        with torch.cuda.stream(self._stream):
            work()

    def record(self) -> Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: Event) -> None:
        self._stream.wait_event(event)


class HostOrder:
    """The CPU: one stream, always done."""

    def engine(self) -> Stream:
        return self

    def new(self) -> Stream:
        return self

    def run(self, work: Callable[[], None]) -> None:
        work()

    def record(self) -> Event:
        return self

    def wait(self, event: Event) -> None:
        """Nothing is ever left to do."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing is ever left to do."""
