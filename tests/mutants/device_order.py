"""Connectors in which one wait between two streams is missing. Only a GPU shows it, or the tests' simulated device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from kvconform.reference._device_streams import Event, Stream
from kvconform.reference._pinned_messages import PinnedMetadata
from kvconform.reference._pinned_worker import PinnedWorkerSide, Queued
from kvconform.reference.hybrid_file_store import HybridFileStoreConnector
from kvconform.reference.pinned_offload import PinnedOffloadConnector


class _WithWorker(PinnedOffloadConnector):
    """The reference connector with another worker side."""

    worker_side: type[PinnedWorkerSide]

    def _make_worker(self, capacity: int) -> PinnedWorkerSide:
        return self.worker_side(capacity, self._make_streams)


class StoresBeforeTheForward(_WithWorker):
    """vllm#31210 / #31341, bugs 139 (R11): a save does not wait for the kernels that write its blocks."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def _behind_the_engine(self, stream: Stream) -> None:
            if stream is not self._save_stream:
                super()._behind_the_engine(stream)


class TrustsTheHostsView(_WithWorker):
    """vllm#45704 / #46278, bugs 140 (R11): what the host knows of the step's start is taken for its kernels' end."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        _start: Event

        def fence(self, metadata: PinnedMetadata) -> None:
            super().fence(metadata)
            self._start = self._streams.engine().record()

        def _behind_the_engine(self, stream: Stream) -> None:
            if stream is self._save_stream:
                stream.wait(self._start)
            else:
                super()._behind_the_engine(stream)


class WaitsForItsOwnStream(_WithWorker):
    """vllm-ascend#4412 / #4976, bugs 143 (R11): a save waits for an event, but not for one of the producing stream."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def _behind_the_engine(self, stream: Stream) -> None:
            if stream is self._save_stream:
                stream.wait(stream.record())
            else:
                super()._behind_the_engine(stream)


class LoadsOnASideStream(HybridFileStoreConnector):
    """Right: the reference with several KV cache groups, whose loads are on a stream of their own."""

    _device = torch.device("cpu")

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        self._device = next(iter(kv_caches.values())).device
        self._streams = PinnedOffloadConnector._make_streams(self._device)
        self._load_stream = self._streams.new()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._behind_the_engine()
        self._load_stream.run(partial(super().start_load_kv, forward_context, **kwargs))
        self._streams.engine().wait(self._load_stream.record())

    def wait_for_save(self) -> None:
        # Only on CUDA does a copy to pageable memory wait by itself.
        self._streams.engine().record().synchronize()
        super().wait_for_save()

    def _behind_the_engine(self) -> None:
        self._load_stream.wait(self._streams.engine().record())


class LoadsOverTheEnginesWork(LoadsOnASideStream):
    """vllm#47282 / #50863, bugs 142 (R11): a load does not wait for what the engine has yet to do with its blocks.

    From 0.24.0 on no step in flight reads the blocks of a load any more, but one may still clear them.
    """

    def _behind_the_engine(self) -> None:
        pass


class ForwardOvertakesLoads(_WithWorker):
    """R11: a synchronous load is queued, and the engine's stream does not wait for it."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def _before_the_forward(self, loaded: Event) -> None:
            pass


class ReportsQueuedLoads(_WithWorker):
    """R11, R13: a load is reported as received once it is queued."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def _is_done(self, queued: Queued) -> bool:
            return queued.load is not None or super()._is_done(queued)


class ReleasesUnderItsCopies(_WithWorker):
    """R11, R12: a save counts as done once it is queued, so held blocks are let go while they are still read."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def _is_done(self, queued: Queued) -> bool:
            return queued.load is None or super()._is_done(queued)


class FencesNothing(_WithWorker):
    """R11, R12: saves from blocks of a preempted request go on while the next owner writes them."""

    class worker_side(PinnedWorkerSide):  # noqa: N801
        def fence(self, metadata: Any) -> None:
            pass
