"""Worker role of PinnedOffloadConnector: queues copies on streams of its own, in the right order, and never computes.

Four orders have to be kept, each by an event; every other step of a copy needs none:

- a save reads behind the kernels that write its blocks (:meth:`PinnedWorkerSide._behind_the_engine`);
- a load writes behind everything that the engine has queued so far, such as the clearing of its blocks (the same);
- whoever reads a loaded block does so behind the load: this step's forward, for which the engine's stream waits, or a
  later one, because the load is reported only once its event has come to pass;
- whoever gets a block that a save reads writes it behind the save (:meth:`PinnedWorkerSide.fence`).

Slots need no events: the scheduler role hands one out again only when every rank has reported what used it as done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ._async_messages import Hold
from ._device_streams import Event, Stream, Streams
from ._kv_pages import KVPages
from ._pinned_messages import PinnedLoad, PinnedMetadata, PinnedReport, PinnedSave


@dataclass(frozen=True)
class Queued:
    """Copies that were queued; they are done when ``done`` has come to pass."""

    done: Event
    load: PinnedLoad | None = None
    saves: tuple[PinnedSave, ...] = ()


class PinnedWorkerSide:
    """One rank's slots and streams. Loads and saves have a stream each, so that neither waits for the other."""

    def __init__(self, capacity: int, make_streams: Callable[[torch.device], Streams]) -> None:
        self._capacity = capacity
        self._make_streams = make_streams
        self._pages: KVPages | None = None
        self._slots = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._queued: list[Queued] = []
        self._unsubmitted: tuple[PinnedSave, ...] = ()
        self._holds: list[Hold] = []
        self._lost: set[int] = set()
        self._loads_done: set[int] = set()
        self._saves_done: set[int] = set()

    def register(self, pages: KVPages, device: torch.device) -> None:
        """Allocate the slots. From pageable memory a copy would not be asynchronous."""
        self._pages = pages
        self._slots = torch.empty(
            (self._capacity, pages.block_bytes), dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda"
        )
        self._streams = self._make_streams(device)
        self._load_stream, self._save_stream = self._streams.new(), self._streams.new()

    # ---- The hooks of a step, in their order ----

    def fence(self, metadata: PinnedMetadata) -> None:
        """Wait for saves from blocks that somebody else is about to write: the only place where the host waits."""
        for each in self._queued:
            if any(save.save_id in metadata.fences for save in each.saves):
                each.done.synchronize()

    def begin(self, metadata: PinnedMetadata) -> None:
        """Queue this step's loads."""
        self._lost.update(save.save_id for save in self._unsubmitted)
        self._unsubmitted = metadata.saves
        self._holds += metadata.holds
        for load in metadata.loads:
            self._behind_the_engine(self._load_stream)
            self._load_stream.run(partial(self._copy_in, load.places))
            done = self._load_stream.record()
            if load.now:
                self._before_the_forward(done)
            self._queued.append(Queued(done, load=load))

    def save(self, metadata: PinnedMetadata) -> None:
        """Queue this step's saves, as one batch."""
        self._unsubmitted = ()
        if not metadata.saves:
            return
        self._behind_the_engine(self._save_stream)
        self._save_stream.run(partial(self._copy_out, metadata.saves))
        self._queued.append(Queued(self._save_stream.record(), saves=metadata.saves))

    def collect(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks are not needed any more, and requests whose load is done, each of them once."""
        running, done = [], []
        for each in self._queued:
            (done if self._is_done(each) else running).append(each)
        self._queued = running
        received = {each.load.request_id for each in done if each.load is not None and not each.load.now}
        self._loads_done |= {each.load.load_id for each in done if each.load is not None}
        self._saves_done |= {save.save_id for each in done for save in each.saves}

        busy = {save.save_id for each in running for save in each.saves}
        released = {hold.request_id for hold in self._holds if hold.save_ids.isdisjoint(busy)}
        self._holds = [hold for hold in self._holds if not hold.save_ids.isdisjoint(busy)]
        return released, received

    def take_report(self) -> PinnedReport | None:
        """What has ended since the last report."""
        if not self._loads_done and not self._saves_done and not self._lost:
            return None
        report = PinnedReport(
            dict.fromkeys(self._loads_done, 1),
            dict.fromkeys(self._saves_done | self._lost, 1),
            frozenset(self._lost),
        )
        self._loads_done, self._saves_done, self._lost = set(), set(), set()
        return report

    def close(self) -> None:
        """Wait for what is being copied, since the memory goes next."""
        for each in self._queued:
            each.done.synchronize()
        self._queued.clear()
        self._holds.clear()
        self._unsubmitted = ()
        self._pages = None
        self._slots = torch.empty(0, dtype=torch.uint8, device="cpu")

    # ---- Order ----

    def _behind_the_engine(self, stream: Stream) -> None:
        """Let the stream go on only behind what the engine has queued by now; the host knows nothing of that."""
        stream.wait(self._streams.engine().record())

    def _before_the_forward(self, loaded: Event) -> None:
        """Let what the engine queues from now on, this step's forward, run behind the load."""
        self._streams.engine().wait(loaded)

    def _is_done(self, queued: Queued) -> bool:
        return queued.done.query()

    # ---- Copies ----

    def _copy_in(self, places: Sequence[tuple[int, int]]) -> None:
        """Slots to blocks: few copies to a buffer on the device, and one scatter per layer."""
        pages = self._require_pages()
        ordered = sorted(places, key=lambda place: place[1])
        rows = pages.buffer(len(ordered))
        for rows_of, slots in _runs([slot for _, slot in ordered]):
            rows[rows_of].copy_(self._slots[slots], non_blocking=True)
        pages.scatter([block for block, _ in ordered], rows)

    def _copy_out(self, saves: Iterable[PinnedSave]) -> None:
        """Blocks to slots: one gather per layer, and few copies to the host."""
        ordered = sorted(saves, key=lambda save: save.slot)
        rows = self._require_pages().gather([save.block for save in ordered])
        for rows_of, slots in _runs([save.slot for save in ordered]):
            self._slots[slots].copy_(rows[rows_of], non_blocking=True)

    def _require_pages(self) -> KVPages:
        if self._pages is None:
            raise RuntimeError("PinnedOffloadConnector has work but no KV cache; call register_kv_caches first.")
        return self._pages


def _runs(slots: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Ascending slots as (rows, slots) of consecutive ones, each of which is one copy."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield slice(start, end), slice(slots[start], slots[end - 1] + 1)
            start = end
