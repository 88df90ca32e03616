"""The forward of a step whose kernels are only queued while the connector's hooks run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvconform.engine.vllm_engine.forward import LayerForward, ScheduledRequest
from kvconform.kvcache.memory import differing_slots

if TYPE_CHECKING:
    import torch

    from kvconform.device import DeviceWork
    from kvconform.kvcache.memory import LayerMemory, Slots


@dataclass(frozen=True)
class _Write:
    slots: Slots
    content: torch.Tensor


@dataclass
class _Look:
    """A comparison; ``observed`` and ``wrong`` are on the device, and true only once the stream has got there."""

    request: ScheduledRequest
    layer: LayerMemory
    start: int
    blocks: npt.NDArray[np.int64]
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
    _writes: dict[tuple[str, str], _Write] = field(default_factory=dict)
    _looks: dict[tuple[str, str], _Look] = field(default_factory=dict)

    def prepare(self, requests: list[ScheduledRequest]) -> None:
        """Put contents, expectations and slots of all layers on the device."""
        for name, layer in self.memory.layers.items():
            for request in requests:
                key = (name, request.request_id)
                stop = request.computed + request.scheduled
                places = request.places(layer.group, layer.block_size, request.first_written(layer), stop)
                self._writes[key] = _Write(layer.slots(*places), self._computed(layer, request))
                start = self._first_needed(layer, request)
                if start < request.computed:
                    blocks, offsets = request.places(layer.group, layer.block_size, start, request.computed)
                    expected = self._expected(layer, request, start)
                    self._looks[key] = _Look(request, layer, start, blocks, layer.slots(blocks, offsets), expected)

    def _layer(self, name: str, requests: list[ScheduledRequest]) -> None:
        self._fail_if_planned(name)
        first, then = self._queue_write, self._queue_look
        if self.memory.layers[name].recurrent:
            first, then = then, first
        for queue in (first, then):
            for request in requests:
                queue(name, request)

    def _queue_write(self, name: str, request: ScheduledRequest) -> None:
        write = self._writes[name, request.request_id]
        self.work.run(partial(self.memory.put, name, write.slots, write.content))

    def _queue_look(self, name: str, request: ScheduledRequest) -> None:
        look = self._looks.get((name, request.request_id))
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
            if look.observed is not None and look.wrong is not None:
                wrong = look.wrong if bool(look.wrong.any()) else None
                self._judge(look.layer, look.request, look.start, look.blocks, look.observed, wrong)
