"""What lies in the blocks that are measured, and what has arrived in them. None of it is on the clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvconform.kvcache.memory import KVMemory, LayerMemory


@dataclass(frozen=True)
class Arrived:
    """Bytes of the blocks of a load that changed, and of those that are what was stored."""

    expected: int
    changed: int
    right: int


class Content:
    """The KV of one prompt after another: random bytes, other ones in each round.

    Args:
        memory: where it is written.
        blocks: of a prompt that are full.
        seed: decides the bytes.
    """

    def __init__(self, memory: KVMemory, blocks: int, seed: int) -> None:
        self._memory = memory
        generator = torch.Generator(memory.raw.device).manual_seed(seed)
        self._base = {
            name: torch.randint(
                0,
                256,
                (blocks, *layer.bytes.shape[1:]),
                dtype=torch.uint8,
                device=memory.raw.device,
                generator=generator,
            )
            for name, layer in memory.layers.items()
        }
        self._source = memory.raw[: self.bytes_per_block * blocks]
        self._copy = self._source.clone()

    @property
    def bytes_per_block(self) -> int:
        """Of all layers."""
        return sum(int(base[0].numel()) for base in self._base.values())

    @property
    def copied(self) -> int:
        """Bytes of a memcpy: as many as a prompt has in its full blocks."""
        return int(self._copy.numel())

    def copy(self) -> None:
        """The memcpy beside which everything is measured: within the memory of the KV cache's device."""
        self._copy.copy_(self._source)

    def write(self, blocks: Sequence[Sequence[int]], number: int) -> None:
        """Put the prompt of a round into its blocks, per KV cache group."""
        for layer, places, rows in self._places(blocks):
            layer.bytes[rows] = self._base[layer.name][places] ^ (number % 256)

    def spoil(self, blocks: Sequence[Sequence[int]], number: int) -> None:
        """Put something else there, in which each byte differs."""
        for layer, places, rows in self._places(blocks):
            layer.bytes[rows] = ~(self._base[layer.name][places] ^ (number % 256))

    def arrived(self, blocks: Sequence[Sequence[int]], number: int) -> Arrived:
        """What has become of blocks that were spoilt."""
        expected = changed = right = 0
        for layer, places, rows in self._places(blocks):
            now, wanted = layer.bytes[rows], self._base[layer.name][places] ^ (number % 256)
            size = now[0].numel() if len(now) else 0
            expected += size * len(now)
            changed += size * int((now != ~wanted).flatten(1).any(1).sum())
            right += size * int((now == wanted).flatten(1).all(1).sum())
        return Arrived(expected, changed, right)

    def _places(self, blocks: Sequence[Sequence[int]]) -> Iterator[tuple[LayerMemory, Any, torch.Tensor]]:
        """Per layer which blocks of the prompt have a place, and where; a window has none for what lies before it."""
        for layer in self._memory.layers.values():
            table = blocks[layer.group][: len(self._base[layer.name])]
            there = [index for index, block in enumerate(table) if block]
            places = torch.tensor(there, dtype=torch.int64, device=self._memory.raw.device)
            yield layer, places, layer.rows([table[index] for index in there])
