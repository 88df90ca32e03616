"""What the requests of a step write or read in the layers of one KV cache group, one request behind the other.

Layers of a group have the same block tables, so most of it is worked out once for all of them; and a layer is written,
and compared, at once for all requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvconform.kvcache.oracle import U64, TokenChain

if TYPE_CHECKING:
    from kvconform.kvcache.memory import LayerMemory, Slots


@dataclass(frozen=True)
class ScheduledRequest:
    """One request of a step: its block table per group, computed tokens before the step, tokens of the step.

    The last ``rejected`` tokens of the step are drafts that the target model refuses.
    """

    request_id: str
    block_ids: list[list[int]]
    computed: int
    scheduled: int
    rejected: int = 0

    def places(
        self, group: int, block_size: int, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Block ids and token offsets of positions [start, stop)."""
        positions = np.arange(start, stop, dtype=np.int64)
        table = np.asarray(self.block_ids[group], dtype=np.int64)
        return table[positions // block_size], positions % block_size

    def first_written(self, layer: LayerMemory) -> int:
        """The first position of which the step leaves something: a recurrent layer keeps the last state only.

        vLLM ends the steps of a prompt where a state is to be kept (Scheduler._mamba_block_aligned_split, 0.32.0).
        """
        return self.computed + self.scheduled - 1 if layer.recurrent else self.computed

    def slots(self, group: int, block_size: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """vLLM's slot mapping of positions [start, stop): block id * block size + offset."""
        blocks, offsets = self.places(group, block_size, start, stop)
        return blocks * block_size + offsets


@dataclass(frozen=True)
class Part:
    """The rows of one request: positions from ``start`` on."""

    request: ScheduledRequest
    start: int
    rows: slice


@dataclass(frozen=True)
class Rows:
    """T slots of a layer.

    ``blocks`` [T] are the manager's block ids, ``slots`` what the memory takes, ``chain`` [T] the oracle's values.
    """

    parts: tuple[Part, ...]
    blocks: npt.NDArray[np.int64]
    slots: Slots
    chain: U64


#: The positions [first, last) of a request that a layer writes or reads.
Range = Callable[[ScheduledRequest], tuple[int, int]]


def gather(
    layer: LayerMemory, requests: Sequence[ScheduledRequest], chains: Mapping[str, TokenChain], positions: Range
) -> Rows | None:
    """The rows of all requests; None if there are none."""
    parts: list[Part] = []
    places: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    values: list[U64] = []
    row = 0
    for request in requests:
        first, last = positions(request)
        if first < last:
            parts.append(Part(request, first, slice(row, row + last - first)))
            places.append(request.places(layer.group, layer.block_size, first, last))
            values.append(chains[request.request_id].chain(first, last))
            row += last - first
    if not parts:
        return None
    blocks, offsets = (np.concatenate(arrays) for arrays in zip(*places, strict=True))
    return Rows(tuple(parts), blocks, layer.slots(blocks, offsets), np.concatenate(values))
