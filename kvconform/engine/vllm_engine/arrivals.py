"""Whether an asynchronous load's bytes are in its blocks at the moment in which it is reported as complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvconform.kvcache.comparison import differing
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain, expand, slot_seeds


@dataclass(frozen=True)
class WrongLayer:
    """A layer in which something of a load is not there: token positions, all blocks of the load, the bytes there.

    ``observed`` is uint8 [positions, heads, content bytes].
    """

    layer: str
    group: int
    rank: int
    positions: tuple[int, ...]
    blocks: tuple[int, ...]
    observed: npt.NDArray[np.uint8]


def wrong_layers(
    memory: KVMemory, chain: TokenChain, table: tuple[list[int], ...], first: int, last: int
) -> Iterator[WrongLayer]:
    """Layers in which positions [first, last) differ from the oracle."""
    for name, layer in memory.layers.items():
        ids = np.asarray(table[layer.group], dtype=np.int64)
        positions = np.arange(last - 1 if layer.recurrent else first, last, dtype=np.int64)
        blocks = ids[positions // layer.block_size]
        # Null blocks stand for positions that no later token reads.
        positions, blocks = positions[blocks > 0], blocks[blocks > 0]
        if not len(positions):
            continue
        observed = memory.read(name, blocks, positions % layer.block_size)
        seeds = slot_seeds(chain.chain(first, last)[positions - first], name, memory.rank)
        expected = expand(seeds, layer.content, observed.device)
        wrong = differing(observed, expected)
        if wrong is None:
            continue
        at = positions[wrong.cpu().numpy()].tolist()
        yield WrongLayer(
            name,
            layer.group,
            memory.rank,
            tuple(at),
            tuple(dict.fromkeys(blocks.tolist())),
            observed[wrong].cpu().numpy(),
        )
