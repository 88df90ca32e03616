"""Where blocks and slots lie, small and by hand: kernel blocks, groups, clearing, comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from kv_bench import Owned, build_memory, connector_view
from test_memory import FEW, one_byte, poison_of, recurrent_memory, whole_block

from kvconform.kvcache.comparison import differing, differing_slots
from kvconform.kvcache.memory import LayerMemory, _no_marks
from kvconform.kvcache.oracle import PageContent
from kvconform.kvcache.shape import KVCacheShape, LayerShape

pytestmark = pytest.mark.usefixtures("vllm_cpu")

SPLIT = KVCacheShape(num_blocks=6, kernel_block_size=4)


def layer(ratio: int, *, recurrent: bool = False) -> LayerMemory:
    """Blocks of 16 tokens."""
    view = torch.zeros(6 * ratio, 1, 16 // ratio, 8, dtype=torch.uint8)
    return LayerMemory("layer", 0, 16, ratio, PageContent(1, 8), view, recurrent)


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "rows"), [(1, [3, 1]), (2, [6, 7, 2, 3]), (4, [12, 13, 14, 15, 4, 5, 6, 7])])
def test_rows_of_a_block_are_its_kernel_blocks_one_behind_the_other(ratio: int, rows: list[int]) -> None:
    assert layer(ratio).rows([3, 1]).tolist() == rows
    nothing = layer(ratio).rows([])
    assert (nothing.shape, nothing.dtype) == ((0,), torch.int64)


@pytest.mark.parametrize(
    ("ratio", "blocks", "offsets"),
    [(1, [3, 3, 1], [0, 9, 15]), (2, [6, 7, 3], [0, 1, 7]), (4, [12, 14, 7], [0, 1, 3])],
)
def test_slot_of_a_block_lies_in_one_of_its_kernel_blocks(ratio: int, blocks: list[int], offsets: list[int]) -> None:
    found = layer(ratio).slots(np.array([3, 3, 1]), np.array([0, 9, 15]))
    assert [index.tolist() for index in found] == [blocks, offsets]


def test_state_of_a_block_is_its_only_slot() -> None:
    found = layer(1, recurrent=True).slots(np.array([3, 1]), np.array([0, 9]))
    assert [index.tolist() for index in found] == [[3, 1], [0, 0]]
    assert (layer(1, recurrent=True).slots_per_block, layer(2).slots_per_block) == (1, 16)


def test_layers_that_are_laid_out_alike_know_each_other() -> None:
    other = LayerShape(num_kv_heads=1)
    memory = build_memory(KVCacheShape((LayerShape(), other, LayerShape()), num_blocks=6))
    layers = list(memory.layers.values())
    alike = [name for name, layer in memory.layers.items() if layer.bytes.shape == layers[0].bytes.shape]
    assert len({layer.layout for layer in layers}) == 2
    assert [memory.layers[name].place for name in alike] == list(range(len(alike)))
    for layer in layers:
        assert layer.alike[layer.place] == layer.name
        assert layer.alike == tuple(name for name, one in memory.layers.items() if one.layout == layer.layout)
        shapes = {(memory.layers[name].bytes.shape, memory.layers[name].bytes.stride()) for name in layer.alike}
        assert len(shapes) == 1


# -- the widest integers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "strides", "offset", "dtype"),
    [
        ((2, 1, 2, 8), (16, 16, 8, 1), 0, torch.int64),
        ((2, 1, 2, 24), (48, 48, 24, 1), 16, torch.int64),
        ((2, 1, 2, 4), (8, 8, 4, 1), 0, torch.int32),
        ((2, 1, 2, 6), (12, 12, 6, 1), 0, torch.int16),
        ((2, 1, 2, 5), (10, 10, 5, 1), 0, torch.uint8),
        # It is the strictest of all: where the view begins, and every stride.
        ((2, 1, 2, 8), (16, 16, 8, 1), 4, torch.int32),
        ((2, 1, 2, 8), (16, 16, 8, 1), 1, torch.uint8),
        ((2, 1, 2, 8), (20, 16, 8, 1), 0, torch.int32),
        ((2, 1, 2, 8), (24, 18, 8, 1), 0, torch.int16),
        ((2, 1, 2, 8), (24, 24, 9, 1), 0, torch.uint8),
        # Bytes that do not lie side by side stay bytes.
        ((2, 1, 2, 8), (32, 32, 16, 2), 0, torch.uint8),
    ],
)
def test_bytes_are_moved_in_the_widest_integers_that_every_place_allows(
    size: tuple[int, ...], strides: tuple[int, ...], offset: int, dtype: torch.dtype
) -> None:
    view = torch.arange(128, dtype=torch.uint8).as_strided(size, strides, offset)
    words = LayerMemory("layer", 0, 2, 1, PageContent(1, size[-1]), view).words
    assert words.dtype is dtype
    assert torch.equal(words.view(torch.uint8), view)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_marks_lie_where_the_bytes_do(device: str) -> None:
    marks = _no_marks(torch.empty(9, dtype=torch.uint8, device=device))
    assert (marks.device.type, marks.dtype, marks.shape) == (device, torch.bool, (9,))
    assert device == "meta" or not marks.any()


def test_memory_lies_where_its_views_do() -> None:
    memory = build_memory(FEW, device="meta")
    assert {memory.raw.device.type, memory.shadow.device.type} == {"meta"}
    assert memory.raw.shape == build_memory(FEW).raw.shape


# -- kernel blocks -----------------------------------------------------------------------------------------------------


def test_block_of_several_kernel_blocks_is_poisoned_and_audited_as_a_whole() -> None:
    memory = build_memory(SPLIT)
    name = next(iter(memory.layers))
    memory.poison([2], group=0)
    for block, life in ((1, 0), (2, 1), (3, 0)):
        assert (whole_block(memory, name, block) == poison_of(memory, name, block, life)).all()
    ground = Owned(memory)
    ground.own(2, 9)
    # Token 9 and token 15 are in the kernel blocks 10 and 11, token 7 in 9, token 4 of block 3 in 13.
    for row, offset in ((10, 1), (11, 3), (9, 3), (13, 0)):
        connector_view(memory, name)[row, 0, offset, 0] ^= 1
    found = ground.audit()
    assert [(write.block, write.slots, write.bytes_changed) for write in found] == [(2, (7,), 3), (3, (4,), 1)]
    for write in found:
        assert write.observed is not None
        assert (write.observed.numpy() == whole_block(memory, name, write.block)[list(write.slots)]).all()


# -- lives, ranks, groups ----------------------------------------------------------------------------------------------


def test_each_time_a_block_is_handed_out_is_a_life_of_its_own() -> None:
    memory = build_memory(FEW)
    name = next(iter(memory.layers))
    for life in (1, 2, 3):
        memory.poison([3, 5], group=0)
        assert (memory.life(3), memory.life(5), memory.life(4)) == (life, life, 0)
        assert (whole_block(memory, name, 3) == poison_of(memory, name, 3, life)).all()


def test_ranks_are_told_apart_from_engines() -> None:
    numbers = [build_memory(FEW, engine=engine, rank=rank).engine for rank in (0, 1, 2) for engine in (1, 2)]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("group", [0, 1])
def test_only_layers_of_the_group_are_poisoned(group: int) -> None:
    """Those of the other one lie in the same bytes."""
    memory = recurrent_memory()
    memory.poison([3], group)
    mine = [name for name, layer in memory.layers.items() if layer.group == group]
    assert len(mine) == 2
    for name in mine:
        size = memory.layers[name].slots_per_block
        observed = memory.read(name, np.full(size, 3), np.arange(size)).numpy()
        assert (observed == poison_of(memory, name, 3, 1)[:size]).all()
    assert Owned(memory).audit() == []


@pytest.mark.parametrize("shape", [FEW, SPLIT], ids=["whole", "split"])
def test_cleared_blocks_hold_zeros_and_nothing_else_has_changed(shape: KVCacheShape) -> None:
    memory = build_memory(shape)
    clear = memory.clearing([1, 4])
    before = {name: [whole_block(memory, name, block) for block in range(6)] for name in memory.layers}
    assert all(block.any() for blocks in before.values() for block in blocks)
    clear()
    for name, blocks in before.items():
        for block, content in enumerate(blocks):
            expected = np.zeros_like(content) if block in (1, 4) else content
            assert (whole_block(memory, name, block) == expected).all()
    assert Owned(memory).audit() == [], "the engine itself has cleared them"


# -- the audit ---------------------------------------------------------------------------------------------------------


def test_first_byte_of_the_memory_is_audited() -> None:
    memory = build_memory(FEW)
    memory.raw[0] ^= 1
    (write,) = Owned(memory).audit()
    assert (write.block, write.slots, write.bytes_changed) == (0, (0,), 1)


def test_block_of_nobody_is_told_once_and_of_the_first_group() -> None:
    memory = recurrent_memory()
    name, of = next((name, layer) for name, layer in memory.layers.items() if layer.group == 0)
    one_byte(memory, name, 4, 5)
    (write,) = Owned(memory).audit()
    assert (write.block, memory.layers[write.layer].group, write.slots) == (4, of.group, (5,))


# -- comparisons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 2, 8), (4, 1, 5), (1, 3, 4), (4, 2, 6)])
def test_slots_that_differ_in_any_byte_are_marked(shape: tuple[int, ...]) -> None:
    expected = torch.arange(int(np.prod(shape)), dtype=torch.uint8).reshape(shape)
    assert differing(expected.clone(), expected) is None
    assert not differing_slots(expected.clone(), expected).any()
    for slot in range(shape[0]):
        observed = expected.clone()
        observed[slot, -1, -1] ^= 0x80
        marks: Any = [index == slot for index in range(shape[0])]
        found = differing(observed, expected)
        assert found is not None
        assert found.tolist() == differing_slots(observed, expected).tolist() == marks
