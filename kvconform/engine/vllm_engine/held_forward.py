"""The forward of a step whose kernels are only queued while the connector's hooks run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from kvconform.engine.vllm_engine.forward import LayerForward
from kvconform.kvcache.comparison import differing_slots

if TYPE_CHECKING:
    import torch

    from kvconform.device import DeviceWork
    from kvconform.engine.vllm_engine.rows import Rows, ScheduledRequest
    from kvconform.kvcache.memory import LayerMemory, Slots


@dataclass(frozen=True)
class _Write:
    slots: Slots
    content: torch.Tensor


@dataclass
class _Look:
    """A comparison; ``observed`` and ``wrong`` are on the device, and true only once the stream has got there."""

    layer: LayerMemory
    rows: Rows
    slots: Slots
    expected: torch.Tensor
    observed: torch.Tensor | None = None
    wrong: torch.Tensor | None = None


@dataclass
class HeldForward(LayerForward):
    """Queues what :class:`LayerForward` does, and reads the results in :meth:`settle`.

    A queued kernel has to be queued without the host waiting, so whatever comes from the host is put on the device by
    :meth:`prepare`, before anything is held back. What a request computes on wrong KV is not tainted: that is known too
    late. The connector's writes are audited once the step is over.
    """

    work: DeviceWork = field(kw_only=True)
    #: Told once all layers are queued: whether their kernels have yet to run.
    queued: Callable[[bool], None] = field(kw_only=True)
    _writes: dict[str, _Write] = field(default_factory=dict)
    _looks: dict[str, _Look] = field(default_factory=dict)

    def prepare(self, requests: list[ScheduledRequest]) -> None:
        """Put contents, expectations and slots of all layers on the device."""
        for name, layer in self.memory.layers.items():
            written, read = self._written_rows(layer, requests), self._read_rows(layer, requests)
            if written is not None:
                self._writes[name] = _Write(written.slots, self._computed(layer, written))
            if read is not None:
                self._looks[name] = _Look(layer, read, read.slots, self._expected(layer, read))

    def _layer(self, name: str, requests: list[ScheduledRequest]) -> None:
        self._fail_if_planned(name)
        queues = (self._queue_write, self._queue_look)
        for queue in reversed(queues) if self.memory.layers[name].recurrent else queues:
            queue(name)

    def _queue_write(self, name: str) -> None:
        write = self._writes.get(name)
        if write is not None:
            self.work.run(partial(self.memory.put, name, write.slots, write.content))

    def _queue_look(self, name: str) -> None:
        look = self._looks.get(name)
        if look is not None:
            self.work.run(partial(self._compare_on_device, look))

    def _compare_on_device(self, look: _Look) -> None:
        look.observed = self.memory.get(look.layer.name, look.slots)
        look.wrong = differing_slots(look.observed, look.expected)

    def _done(self, requests: list[ScheduledRequest]) -> None:
        super()._done(requests)
        self.queued(self.work.pending())

    def settle(self) -> None:
        """Wait for the kernels, as vLLM does for the sampled tokens, and take the results."""
        self.work.settle()
        for look in self._looks.values():
            if look.observed is not None and look.wrong is not None and bool(look.wrong.any()):
                self._judge(look.layer, look.rows, look.observed, look.wrong)
