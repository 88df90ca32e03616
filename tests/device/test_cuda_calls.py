"""What the kit and the reference ask of torch.cuda, against stand-ins with torch's own signatures.

No GPU is needed, and nothing is shown about one: only that every call exists, goes to the right stream, and that
nothing synchronises where the host must not wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

CUDA = torch.device("cuda")


class FakeCuda:
    """Streams that record what was called on them, and which one is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stream_type, self.event_type = torch.cuda.Stream, torch.cuda.Event
        self.default = self.stream()
        self.current = self.default
        empty = torch.empty

        def without_device(*size: Any, pin_memory: bool = False, device: Any = None, **more: Any) -> torch.Tensor:
            self.calls.append(("pinned" if pin_memory else f"on {device}", size))
            return empty(*size, **more)

        monkeypatch.setattr(torch, "empty", without_device)
        for name, fake in {
            "Stream": self.stream,
            "Event": self.event,
            "stream": self.within,
            "set_stream": self.set,
            "current_stream": lambda device=None: self.current,
            "default_stream": lambda device=None: self.default,
            "_sleep": lambda cycles: self.calls.append(("sleep", (self.current, cycles))),
        }.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, fake)

    def stream(self, device: Any = None, priority: int = 0, **more: Any) -> Any:
        made = create_autospec(self.stream_type, instance=True)
        made.query.return_value = True
        made.priority = priority
        return made

    def event(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Any:
        return create_autospec(self.event_type, instance=True)

    def set(self, stream: Any) -> None:
        self.current = stream

    @contextmanager
    def within(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def work(vllm_cpu: object, fake: FakeCuda) -> Any:
    from kvconform.device.cuda import CudaWork

    made = CudaWork(CUDA)
    fake.calls.clear()
    fake.current.synchronize.reset_mock()
    return made


def test_the_engine_has_one_stream_of_its_own_that_torch_gives_to_nobody_else(work: Any, fake: FakeCuda) -> None:
    from kvconform.device.cuda import CudaWork

    engine = fake.current
    assert engine is not fake.default
    assert engine.priority == -1
    engine.wait_stream.assert_called_once_with(fake.default)
    CudaWork(CUDA)
    assert fake.current is engine
    ran: list[Any] = []
    fake.set(fake.default)
    work.run(lambda: ran.append(fake.current))
    assert ran != [fake.default]


def test_a_long_kernel_stands_before_what_is_queued_next_and_nobody_waits(work: Any, fake: FakeCuda) -> None:
    engine = fake.current
    work.hold("kernels")
    work.run(lambda: fake.calls.append(("kernel", fake.current)))
    assert [name for name, _ in fake.calls] == ["sleep", "kernel"]
    assert fake.calls[0][1][0] is engine
    assert fake.calls[0][1][1] > 100_000_000
    engine.query.return_value = False
    assert work.pending()
    engine.synchronize.assert_not_called()
    work.settle()
    engine.synchronize.assert_called_once_with()


def test_long_copies_run_on_streams_of_their_own_from_pinned_memory(work: Any, fake: FakeCuda) -> None:
    work.hold("copies")
    assert [name for name, _ in fake.calls] == ["pinned", "on cuda"] * 2
    fake.current.synchronize.assert_not_called()
    work.hold("copies")
    work.hold(None)
    assert len(fake.calls) == 4, "buffers are made once"


def test_the_references_streams_order_copies_by_events(vllm_cpu: object, fake: FakeCuda) -> None:
    from kvconform.reference._device_streams import streams_of

    streams = streams_of(CUDA)
    own = streams.new()
    event = streams.engine().record()
    own.wait(event)
    ran: list[Any] = []
    own.run(lambda: ran.append(fake.current))
    done = own.record()
    raw = ran[0]
    assert raw is not fake.default
    event.record.assert_called_once_with(fake.default)  # type: ignore[attr-defined]
    raw.wait_event.assert_called_once_with(event)
    done.record.assert_called_once_with(raw)  # type: ignore[attr-defined]
    raw.synchronize.assert_not_called()
