"""The KV memory of one simulated worker: slots, poison, and an audit of every write.

All comparisons are on bytes. The engine's own writes go to the memory and to a *shadow* copy; whatever differs from the
shadow at a checkpoint was written by the connector (or by one of its threads) since the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from kvconform.kvcache.comparison import BytePair, same_bytes, widest
from kvconform.kvcache.head_rows import HeadRows, as_tensor, of_tensor
from kvconform.kvcache.oracle import PageContent, expand, poison_of_blocks
from kvconform.kvcache.placing import to_device

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

#: Kernel block ids [T] and token offsets in them [T], on the device of the cache.
Slots = tuple[torch.Tensor, torch.Tensor]

_RANKS = 1 << 20
#: Bytes that an audit copies at a time; a multiple of what the widest integers take.
PIECE = 4 << 20


@dataclass(frozen=True)
class LayerMemory:
    """One layer's view: ``bytes`` is [kernel blocks, heads, tokens per kernel block, content bytes], strided, uint8.

    A block of a ``recurrent`` layer has one slot, whatever its tokens: the state after the last computed one.
    """

    name: str
    group: int
    block_size: int
    kernel_blocks_per_block: int
    content: PageContent
    bytes: torch.Tensor
    recurrent: bool = False
    #: The layers whose slots lie at the same places, counted from each one's first byte, this one included: their
    #: number among the layouts of this memory, their names in order, and the place of this one among them.
    layout: int = 0
    alike: tuple[str, ...] = ()
    place: int = 0

    @property
    def slots_per_block(self) -> int:
        """Slots of a manager block: one for each token, or one state."""
        return 1 if self.recurrent else self.block_size

    def rows(self, blocks: list[int]) -> torch.Tensor:
        """The kernel block ids of manager blocks, in order, on the cache's device."""
        ratio = self.kernel_blocks_per_block
        ids = np.asarray(blocks, dtype=np.int64)[:, None] * ratio + np.arange(ratio)
        return to_device(ids.ravel(), self.bytes.device)

    def slots(self, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> Slots:
        """Manager block ids and token offsets -> kernel block ids and offsets, on the cache's device."""
        blocks, offsets = self.kernel_places(blocks, offsets)
        return to_device(blocks, self.bytes.device), to_device(offsets, self.bytes.device)

    def kernel_places(
        self, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Manager block ids and token offsets -> kernel block ids and offsets."""
        ratio = self.kernel_blocks_per_block
        if self.recurrent:
            offsets = np.zeros_like(offsets)
        elif ratio > 1:
            tokens = self.block_size // ratio
            blocks, offsets = blocks * ratio + offsets // tokens, offsets % tokens
        return blocks, offsets

    @cached_property
    def words(self) -> torch.Tensor:
        """``bytes`` in the widest integers that its alignment allows, [kernel blocks, heads, tokens, words].

        Moving and comparing eight bytes at a time costs an eighth of the work per element.
        """
        return widest(self.bytes)


@dataclass(frozen=True)
class StrayWrite:
    """Bytes that changed where nobody may write; slots are token offsets in the block, -1 for guard bytes."""

    block: int
    layer: str
    slots: tuple[int, ...]
    bytes_changed: int
    observed: torch.Tensor | None


class KVMemory:
    """Slots addressed by (layer, block id, token offset), over vLLM's own tensors.

    Args:
        views: what vLLM registers with the connector, layer name -> [B, H, N, C].
        config: the worker's KVCacheConfig of these views.
        engine: a number that tells this engine's poison from another's.
        guard_bytes: how many bytes behind the last view belong to nobody.
        rank: of the worker; what it computes differs from what another rank computes, and so does its poison.
    """

    def __init__(
        self,
        views: dict[str, torch.Tensor],
        config: KVCacheConfig,
        engine: int = 0,
        guard_bytes: int = 0,
        rank: int = 0,
    ) -> None:
        self.views = views
        self.engine = engine + _RANKS * rank
        self.rank = rank
        self.num_blocks = config.num_blocks
        self.layers: dict[str, LayerMemory] = {}
        for group_id, group in enumerate(config.kv_cache_groups):
            for name in group.layer_names:
                self.layers[name] = _layer_memory(name, group_id, group.kv_cache_spec, views[name], config)
        _find_alike(self.layers)
        storage = next(iter(views.values())).untyped_storage()
        self.raw = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        self._guard_bytes = guard_bytes
        self._life = [0] * self.num_blocks
        self._fill_with_poison()
        #: Always the same tensor, so that views of it can be kept.
        self.shadow = self.raw.clone()
        self._shadow_views = {name: _like(layer.bytes, self.shadow) for name, layer in self.layers.items()}
        self._pair = BytePair(self.raw, self.shadow)
        #: How a layer's slots are moved in host memory; None where that takes torch.
        self.head_rows = {name: HeadRows.of(layer.bytes, self.raw, self.shadow) for name, layer in self.layers.items()}

    # -- the engine's own accesses ---------------------------------------------------------------------------------

    def write(
        self, layer: str, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], content: torch.Tensor
    ) -> None:
        """Write ``content`` [T, heads, content bytes] to T slots, in the memory and in the shadow."""
        memory, heads = self.layers[layer], self.head_rows[layer]
        if heads is None:
            self.put(layer, memory.slots(blocks, offsets), content)
        else:
            heads.put(heads.index(*memory.kernel_places(blocks, offsets)), of_tensor(content))

    def put(self, layer: str, slots: Slots, content: torch.Tensor) -> None:
        """:meth:`write` to slots that are on the device already."""
        memory = self.layers[layer]
        kernel_blocks, kernel_offsets = slots
        memory.bytes[kernel_blocks, :, kernel_offsets, :] = content
        self._shadow_view(memory)[kernel_blocks, :, kernel_offsets, :] = content

    def read(self, layer: str, blocks: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> torch.Tensor:
        """The bytes of T slots, [T, heads, content bytes]."""
        memory, heads = self.layers[layer], self.head_rows[layer]
        if heads is None:
            return self.get(layer, memory.slots(blocks, offsets))
        return as_tensor(heads.take(heads.index(*memory.kernel_places(blocks, offsets))))

    def get(self, layer: str, slots: Slots) -> torch.Tensor:
        """:meth:`read` of slots that are on the device already."""
        kernel_blocks, kernel_offsets = slots
        return self.layers[layer].words[kernel_blocks, :, kernel_offsets, :].view(torch.uint8)

    def clearing(self, blocks: list[int]) -> Callable[[], None]:
        """What clears whole blocks in the layers of every group, as vLLM does where a cache needs it.

        All that comes from the host is on the device when this returns; the work itself only queues kernels.
        """
        places = [(memory, memory.rows(blocks)) for memory in self.layers.values()]

        def clear() -> None:
            for memory, rows in places:
                memory.bytes.index_fill_(0, rows, 0)
                self._shadow_view(memory).index_fill_(0, rows, 0)

        return clear

    def poison(self, blocks: list[int], group: int) -> None:
        """Give each block a new life: the group's layers hold poison there that names the block and the life."""
        if not blocks:
            return
        for block in blocks:
            self._life[block] += 1
        for name, layer in self.layers.items():
            if layer.group == group:
                slots = layer.slots_per_block
                offsets = np.tile(np.arange(slots), len(blocks))
                self.write(name, np.repeat(blocks, slots), offsets, self._poison_of(blocks, layer))

    def life(self, block: int) -> int:
        """How often this block was handed out anew."""
        return self._life[block]

    # -- the audit -------------------------------------------------------------------------------------------------

    def audit(self, first_writable: npt.NDArray[np.int64], owner_group: npt.NDArray[np.int64]) -> list[StrayWrite]:
        """Find writes outside the writable slots since the last audit, then take the memory as it is.

        Args:
            first_writable: per block, the first token offset that the connector may write; the block size or more
                where nothing may be written.
            owner_group: per block, the KV cache group that owns it, -1 for none.
        """
        if self.untouched():
            return []
        return self._stray_writes(self._follow(), first_writable, owner_group)

    def untouched(self) -> bool:
        """Whether nobody but the engine has written since the last audit; at the speed of the memory."""
        return self._pair.same()

    def _follow(self) -> torch.Tensor:
        """Take what was written into the shadow; a mark for each byte that changed, bool [bytes].

        Piece by piece, so that nothing as large as the memory is copied beside its shadow.
        """
        changed = _no_marks(self.raw)
        for first in range(0, self.raw.numel(), PIECE):
            part = slice(first, first + PIECE)
            if same_bytes(self.raw[part], self.shadow[part]):
                continue
            # A thread of the connector may be writing: judge one copy, and keep that copy as the new shadow.
            now = self.raw[part].clone()
            torch.ne(now, self.shadow[part], out=changed[part])
            self.shadow[part] = now
        return changed

    def _stray_writes(
        self,
        changed: torch.Tensor,
        first_writable: npt.NDArray[np.int64],
        owner_group: npt.NDArray[np.int64],
    ) -> list[StrayWrite]:
        found: list[StrayWrite] = []
        guard = changed[changed.numel() - self._guard_bytes :]
        if bool(guard.any()):
            found.append(StrayWrite(-1, "guard bytes behind the last view", (-1,), int(guard.sum()), None))
        owners = np.maximum(owner_group, 0)
        for group in sorted({memory.group for memory in self.layers.values()}):
            bad = np.zeros(self.num_blocks, dtype=np.bool_)
            for memory in self.layers.values():
                if memory.group == group:
                    touched = self._touched(memory, changed).cpu().numpy()
                    bad |= (touched & (np.arange(memory.slots_per_block) < first_writable[:, None])).any(axis=1)
            for block in (bad & (owners == group)).nonzero()[0]:
                found.extend(self._describe(group, int(block), changed, int(first_writable[block])))
        return found

    def _touched(self, memory: LayerMemory, changed: torch.Tensor) -> torch.Tensor:
        """Which slots of a layer hold a changed byte, [blocks, tokens per block]."""
        by_slot = _like(memory.bytes, changed).any(dim=3).any(dim=1)
        return by_slot.reshape(self.num_blocks, memory.slots_per_block)

    def _describe(self, group: int, block: int, changed: torch.Tensor, limit: int) -> list[StrayWrite]:
        writes = []
        for name, memory in self.layers.items():
            if memory.group != group:
                continue
            ratio = memory.kernel_blocks_per_block
            rows = slice(block * ratio, (block + 1) * ratio)
            by_slot = _like(memory.bytes, changed)[rows].any(dim=3).any(dim=1).reshape(-1)
            slots = tuple(int(slot) for slot in by_slot.nonzero().reshape(-1) if int(slot) < limit)
            if slots:
                content = (
                    self._shadow_view(memory)[rows]
                    .permute(0, 2, 1, 3)
                    .reshape(memory.slots_per_block, *memory.bytes.shape[1::2])
                )
                count = int(_like(memory.bytes, changed)[rows].sum())
                writes.append(StrayWrite(block, name, slots, count, content[list(slots)].cpu()))
        return writes

    # -- internals -------------------------------------------------------------------------------------------------

    def _fill_with_poison(self) -> None:
        """Poison of the first life in all blocks, before there is a shadow."""
        blocks = list(range(self.num_blocks))
        for memory in self.layers.values():
            content = self._poison_of(blocks, memory)
            tokens = memory.slots_per_block // memory.kernel_blocks_per_block
            memory.bytes[memory.rows(blocks)] = content.view(-1, tokens, *content.shape[1:]).transpose(1, 2)

    def _poison_of(self, blocks: list[int], memory: LayerMemory) -> torch.Tensor:
        """[slots of the blocks, heads, content bytes]."""
        lives = [(block, self._life[block]) for block in blocks]
        seeds = poison_of_blocks(self.engine, lives, memory.slots_per_block, memory.name)
        return expand(seeds, memory.content, self.raw.device)

    def _shadow_view(self, memory: LayerMemory) -> torch.Tensor:
        return self._shadow_views[memory.name]


def _find_alike(layers: dict[str, LayerMemory]) -> None:
    """Tell every layer which ones are laid out like it."""
    layouts: dict[tuple[object, ...], list[LayerMemory]] = {}
    for layer in layers.values():
        shape, strides = layer.bytes.shape, layer.bytes.stride()
        layout = (layer.group, layer.block_size, layer.kernel_blocks_per_block, layer.recurrent, shape, strides)
        layouts.setdefault(layout, []).append(layer)
    for number, alike in enumerate(layouts.values()):
        names = tuple(layer.name for layer in alike)
        for place, layer in enumerate(alike):
            layers[layer.name] = replace(layer, layout=number, alike=names, place=place)


def _no_marks(raw: torch.Tensor) -> torch.Tensor:
    """False for each byte; in host memory only what is marked takes room, as the pages of numpy's zeros do (calloc)."""
    if raw.device.type == "cpu":
        return torch.from_numpy(np.zeros(raw.numel(), dtype=np.bool_))
    return torch.zeros(raw.numel(), dtype=torch.bool, device=raw.device)


def _like(view: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """The same places as ``view`` in another flat tensor of as many bytes."""
    return flat.as_strided(view.size(), view.stride(), view.storage_offset())


def _layer_memory(name: str, group: int, spec: KVCacheSpec, view: torch.Tensor, config: KVCacheConfig) -> LayerMemory:
    from vllm.v1.kv_cache_interface import MambaSpec

    ratio, rest = divmod(view.shape[0], config.num_blocks)
    assert rest == 0, f"{name}: {view.shape[0]} rows for {config.num_blocks} blocks"
    as_bytes = view.view(torch.uint8)
    content = PageContent(heads=as_bytes.shape[1], content_bytes=as_bytes.shape[3])
    recurrent = isinstance(spec, MambaSpec)
    return LayerMemory(name, group, spec.block_size, ratio, content, as_bytes, recurrent)
