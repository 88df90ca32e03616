"""Whether an asynchronous load's bytes are in its blocks at the moment in which it is reported as complete."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain, expand, slot_seeds


def wrong_slots(
    memory: KVMemory, chain: TokenChain, table: tuple[list[int], ...], first: int, last: int
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Layers in which positions [first, last) differ from the oracle: (layer, wrong slots, blocks of the load)."""
    for name, layer in memory.layers.items():
        ids = np.asarray(table[layer.group], dtype=np.int64)
        positions = np.arange(first, last, dtype=np.int64)
        blocks = ids[positions // layer.block_size]
        # Null blocks stand for positions that no later token reads.
        positions, blocks = positions[blocks > 0], blocks[blocks > 0]
        if not len(positions):
            continue
        observed = memory.read(name, blocks, positions % layer.block_size)
        seeds = slot_seeds(chain.chain(first, last)[positions - first], name, memory.rank)
        expected = expand(seeds, layer.content, observed.device)
        wrong = int((observed != expected).reshape(len(blocks), -1).any(dim=1).sum())
        if wrong:
            yield name, wrong, tuple(dict.fromkeys(int(block) for block in blocks))
