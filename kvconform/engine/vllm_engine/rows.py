"""What the requests of a step write or read in the layers of one KV cache group, one request behind the other.

Layers of a group have the same block tables, so most of it is worked out once for all of them; and a layer is written,
and compared, at once for all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kvconform.engine.records import record
from kvconform.kvcache.oracle import U64, TokenChain

if TYPE_CHECKING:
    from kvconform.kvcache.head_rows import Contents, HeadRows, Index
    from kvconform.kvcache.kept_contents import KeptContents
    from kvconform.kvcache.memory import LayerMemory, Slots


@record
class ScheduledRequest:
    """One request of a step: its block table per group, computed tokens before the step, tokens of the step.

    The last ``rejected`` tokens of the step are drafts that the target model refuses. ``known`` is what was worked out
    of the block table, and is kept by whoever knows when the table changes.
    """

    request_id: str
    block_ids: list[list[int]]
    computed: int
    scheduled: int
    rejected: int = 0
    known: dict[tuple[object, ...], npt.NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

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
        key = ("slot mapping", group, block_size)
        mapping = self.known.get(key)
        if mapping is None:
            blocks, offsets = self.places(group, block_size, 0, len(self.block_ids[group]) * block_size)
            mapping = self.known[key] = blocks * block_size + offsets
        return mapping[start:stop]

    def index(self, layer: LayerMemory, rows: HeadRows) -> Index:
        """The rows of all positions for which there are blocks, [tokens, heads]."""
        key = ("rows", layer.layout)
        index = self.known.get(key)
        if index is None:
            tokens = len(self.block_ids[layer.group]) * layer.block_size
            places = self.places(layer.group, layer.block_size, 0, tokens)
            index = self.known[key] = rows.index(*layer.kernel_places(*places))
        return index


class Part(NamedTuple):
    """The rows of one request: positions from ``start`` on, ``stop`` is one past the last."""

    request: ScheduledRequest
    start: int
    stop: int
    rows: slice


@dataclass
class Rows:
    """T slots of a layer, and of all layers that are laid out like it; what is asked for is worked out once."""

    parts: tuple[Part, ...]
    layer: LayerMemory
    chains: Mapping[str, TokenChain]
    _index: Index | None = field(default=None, init=False, repr=False)
    _contents: Contents | None = field(default=None, init=False, repr=False)

    @cached_property
    def places(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The manager's block ids [T] and token offsets [T]."""
        group, size = self.layer.group, self.layer.block_size
        places = [part.request.places(group, size, part.start, part.stop) for part in self.parts]
        blocks, offsets = (np.concatenate(arrays) for arrays in zip(*places, strict=True))
        return blocks, offsets

    @cached_property
    def slots(self) -> Slots:
        """What the memory takes, on its device."""
        return self.layer.slots(*self.places)

    @cached_property
    def chain(self) -> U64:
        """The oracle's values [T]."""
        return np.concatenate(
            [self.chains[part.request.request_id].chain(part.start, part.stop) for part in self.parts]
        )

    def index(self, rows: HeadRows) -> Index:
        """The same as ``slots`` in host memory, [T, heads]."""
        if self._index is None:
            indices = [part.request.index(self.layer, rows)[part.start : part.stop] for part in self.parts]
            self._index = indices[0] if len(indices) == 1 else np.concatenate(indices)
        return self._index

    def contents(self, kept: KeptContents) -> Contents:
        """What the oracle says of them, [layers that are laid out alike, T, heads]."""
        if self._contents is None:
            contents = [
                kept.of(self.chains[part.request.request_id], self.layer.alike, self.layer.content, part.stop)[
                    :, part.start : part.stop
                ]
                for part in self.parts
            ]
            self._contents = contents[0] if len(contents) == 1 else np.concatenate(contents, axis=1)
        return self._contents


def gather(
    layer: LayerMemory,
    requests: Sequence[ScheduledRequest],
    chains: Mapping[str, TokenChain],
    ranges: Sequence[tuple[int, int]],
) -> Rows | None:
    """The rows of all requests, of each the positions [first, last); None if there are none."""
    parts: list[Part] = []
    row = 0
    for request, (first, last) in zip(requests, ranges, strict=True):
        if first < last:
            parts.append(Part(request, first, last, slice(row, row + last - first)))
            row += last - first
    return Rows(tuple(parts), layer, chains) if parts else None
