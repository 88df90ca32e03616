"""The engine's stream on CUDA, with long-running work in front of what is held back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kvconform.device.work import Held

# About 100 ms at the clock of a data-centre GPU (1.4 to 2 GHz), and never less than 50 ms: a step's hooks take the host
# a few milliseconds. torch.cuda._sleep spins in one thread of one block, so that other streams run beside it.
KERNEL_CYCLES = 180_000_000
# Copies of this many bytes keep a copy engine busy for about 40 ms (25 GB/s), twice as long in each direction's queue.
COPY_BYTES = 64 << 20
COPIES = 16


class CudaWork:
    """Work on the engine's stream, which is the current one of the thread that made this object.

    As in vLLM it is not the default stream (vllm/utils/torch_utils.py, current_stream, 0.32.0), so a connector that
    synchronises with ``torch.cuda.default_stream()`` synchronises with nothing. Unlike vLLM's it has a high priority:
    torch hands out 32 streams per priority again and again, and a process of the kit builds many engines, so that a
    connector's stream would now and then be the very stream of the engine.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.current_stream(device)
        if self._stream.priority >= 0:
            before, self._stream = self._stream, torch.cuda.Stream(device, priority=-1)
            self._stream.wait_stream(before)
            torch.cuda.set_stream(self._stream)
        # Loads the kernel while nothing runs: CUDA loads kernels lazily, and may synchronise for it.
        torch.cuda._sleep(1)
        self._copies: tuple[_BusyCopies, ...] = ()
        self._stream.synchronize()

    def run(self, work: Callable[[], None]) -> None:
        """At once: operations on CUDA tensors are queued by nature."""
        with torch.cuda.stream(self._stream):
            work()

    def hold(self, what: Held | None) -> None:
        """A long kernel on the engine's stream, or long copies on two streams of their own; both end by themselves."""
        if what is None:
            return
        if what == "kernels":
            with torch.cuda.stream(self._stream):
                torch.cuda._sleep(KERNEL_CYCLES)
            return
        if not self._copies:
            self._copies = tuple(_BusyCopies(self._device, to_host) for to_host in (True, False))
        for copies in self._copies:
            copies.queue()

    def pending(self) -> bool:
        """Asks the stream; nothing is waited for."""
        return not self._stream.query()

    def settle(self) -> None:
        """Waits for this stream only; a connector's streams go on."""
        self._stream.synchronize()


class _BusyCopies:
    """Copies between pinned memory and the device, behind which copies of the same direction have to queue.

    How a GPU shares its copy engines is up to its driver: this makes it likely, not certain, that a connector's copy
    comes late.
    """

    def __init__(self, device: torch.device, to_host: bool) -> None:
        pinned = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True)
        there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
        self._source, self._target = (there, pinned) if to_host else (pinned, there)
        self._stream = torch.cuda.Stream(device)
        # The allocation is the current stream's: nothing there may still use that memory.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def queue(self) -> None:
        """Queue all copies, unless earlier ones still run."""
        if self._stream.query():
            with torch.cuda.stream(self._stream):
                for _ in range(COPIES):
                    self._target.copy_(self._source, non_blocking=True)
