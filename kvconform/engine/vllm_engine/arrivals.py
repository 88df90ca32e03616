"""Whether an asynchronous load's bytes are in its blocks when it is reported as complete, or come after that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvconform.kvcache.comparison import differing
from kvconform.kvcache.memory import KVMemory, LayerMemory
from kvconform.kvcache.oracle import TokenChain, expand, slot_seeds
from kvconform.kvcache.provenance import Origin, Provenance


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


@dataclass
class Awaited:
    """Loads that were reported as complete and were not there, by the blocks in which they should have been.

    Another load's misplaced bytes may come to the same blocks; those are told from the load itself by what they are.
    """

    provenance: Provenance
    #: Per block and request: its tokens, and where in its table the block is.
    _places: dict[int, dict[str, tuple[TokenChain, int]]] = field(default_factory=dict)

    def add(self, request: str, chain: TokenChain, table: Sequence[int], blocks: Iterable[int]) -> None:
        """The load of ``request`` is not in these blocks of its ``table``."""
        for block in blocks:
            self._places.setdefault(block, {})[request] = (chain, table.index(block))

    def owed(
        self, layer: LayerMemory, rank: int, block: int, slots: Sequence[int], found: Sequence[Origin]
    ) -> tuple[str, ...]:
        """The requests whose load may be what was ``found`` in these slots of a block."""
        return tuple(
            request
            for request, (chain, index) in self._places.get(block, {}).items()
            if any(
                self._may_be(origin, chain, layer, rank, index * layer.block_size + slot)
                for slot, origin in zip(slots, found, strict=True)
            )
        )

    def _may_be(self, origin: Origin, chain: TokenChain, layer: LayerMemory, rank: int, position: int) -> bool:
        if origin.kind not in ("content", "tainted", "poison"):
            # A load that brings something else than it should: nothing shows whose it is.
            return True
        if origin.kind == "poison" or (origin.layer, origin.rank) != (layer.name, rank):
            return False
        # A state has one slot for all tokens of its block.
        own = origin.position - position in range(layer.block_size if layer.recurrent else 1)
        return own and self.provenance.is_of(origin, chain)
