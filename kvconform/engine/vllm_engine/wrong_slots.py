"""What wrong slots hold, in words and as data, and the block table that they lie in: for texts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvconform.engine.byte_events import BlockTable, Held
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Provenance, describe, held_kind, held_words, stretches


@dataclass(frozen=True)
class Contents:
    """What the wrong slots of one layer hold instead: a sentence for each run of slots, and the same as data."""

    observed: tuple[str, ...]
    held: tuple[Held, ...]


def contents(
    provenance: Provenance,
    chain: TokenChain,
    positions: Sequence[int],
    observed: npt.NDArray[np.uint8],
    layer: str,
    rank: int,
) -> Contents:
    """Identify the bytes [T, heads, content bytes] that stand at T token positions of the request with ``chain``."""
    origins = provenance.identify(observed)
    held = tuple(
        Held(
            positions[first],
            positions[last],
            held_kind(origins[first], positions[first], layer, rank, own=provenance.is_of(origins[first], chain)),
            held_words(origins[first], origins[last], layer, rank),
        )
        for first, last in stretches(positions, origins)
    )
    return Contents(describe(positions, origins, layer, rank), held)


def block_table(
    place: tuple[int, int, str],
    memory: KVMemory,
    tables: Sequence[Sequence[int]],
    computed: int,
    scheduled: int,
    external: tuple[int, int],
) -> BlockTable:
    """The block table of a request of a worker with ``memory``.

    ``place`` is engine, step and request; the other arguments are as in :class:`BlockTable`, ``tables`` per group.
    """
    sizes = {layer.group: layer.block_size for layer in memory.layers.values()}
    return BlockTable(
        *place,
        tuple(sizes.get(group, 0) for group in range(len(tables))),
        tuple(tuple(map(int, blocks)) for blocks in tables),
        computed,
        scheduled,
        *external,
        memory.rank,
    )
