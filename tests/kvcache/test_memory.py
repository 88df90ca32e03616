"""The KV memory: slots in every layout, poison, and an audit that finds every write to a wrong place."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_bench import Owned, build_memory, compute, connector_view, places, shapes, unchecked

from kvconform.kvcache import memory as memory_module
from kvconform.kvcache.build import GUARD_BYTES
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import TokenChain, expand, poison_seeds
from kvconform.kvcache.shape import LAYOUTS, KVCacheShape, LayerShape, ShapeError

pytestmark = pytest.mark.usefixtures("vllm_cpu")

FEW = KVCacheShape(num_blocks=6)
CHAIN = TokenChain(tuple(range(300, 380)))
STATES = (((3, 20), "float16"), ((2, 8, 8), "float32"))


def poison_of(memory: KVMemory, layer: str, block: int, life: int) -> np.ndarray:
    """[tokens, heads, content bytes] of a block in one life."""
    of = memory.layers[layer]
    return expand(poison_seeds(memory.engine, block, life, of.block_size, layer), of.content).numpy()


def whole_block(memory: KVMemory, layer: str, block: int) -> np.ndarray:
    size = memory.layers[layer].block_size
    return memory.read(layer, np.full(size, block), np.arange(size)).numpy()


def writers_per_byte(memory: KVMemory) -> torch.Tensor:
    """For every byte of the allocation, how many slots claim it."""
    count = torch.zeros(memory.raw.numel(), dtype=torch.int32)
    places_of = torch.arange(memory.raw.numel())
    for layer in memory.layers.values():
        claimed = places_of.as_strided(layer.bytes.size(), layer.bytes.stride(), layer.bytes.storage_offset())
        count += torch.bincount(claimed.reshape(-1), minlength=memory.raw.numel()).to(torch.int32)
    return count


# -- slots -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), data=st.data())
def test_what_is_written_is_read_and_lies_where_the_connector_sees_it(shape: KVCacheShape, data: st.DataObject) -> None:
    memory = build_memory(shape)
    table = data.draw(st.permutations(range(1, shape.num_blocks)).map(lambda ids: list(ids[:2])))
    length = data.draw(st.integers(1, 2 * shape.block_size))
    compute(memory, CHAIN, table, length)
    assert len(memory.layers) == shape.layers[0].count
    for name, layer in memory.layers.items():
        blocks, offsets = places(table, layer.block_size, length)
        observed = memory.read(name, blocks, offsets)
        assert observed.shape == (length, layer.content.heads, shape.layers[0].content_bytes)
        tokens_per_row = memory.views[name].shape[2]
        view = connector_view(memory, name)
        for position in {0, length // 2, length - 1}:
            block, offset = int(blocks[position]), int(offsets[position])
            row = block * (shape.block_size // tokens_per_row) + offset // tokens_per_row
            assert torch.equal(view[row, :, offset % tokens_per_row], observed[position])
        untouched = set(range(shape.num_blocks)) - set(table)
        assert all((whole_block(memory, name, block) == poison_of(memory, name, block, 0)).all() for block in untouched)
        if length % layer.block_size:
            behind = whole_block(memory, name, int(blocks[-1]))[length % layer.block_size :]
            assert (behind == poison_of(memory, name, int(blocks[-1]), 0)[length % layer.block_size :]).all()
    assert Owned(memory).audit() == [], "the engine's own writes are no stray writes"


@settings(max_examples=40, deadline=None)
@given(shape=shapes())
def test_no_two_slots_share_a_byte(shape: KVCacheShape) -> None:
    memory = build_memory(shape)
    slots = sum(layer.bytes.numel() for layer in memory.layers.values())
    writers = writers_per_byte(memory)
    assert int(writers.max()) == 1
    assert int(writers.sum()) == slots
    assert memory.raw.numel() >= slots + GUARD_BYTES


# -- poison ----------------------------------------------------------------------------------------------------


def test_poison_names_engine_block_life_and_layer() -> None:
    memory, other = build_memory(FEW, engine=1), build_memory(FEW, engine=2)
    layer = next(iter(memory.layers))
    seen = {
        memory.views[name][block].view(torch.uint8).numpy().tobytes() for name in memory.layers for block in range(6)
    }
    assert len(seen) == 12
    assert (whole_block(memory, layer, 3) != whole_block(other, layer, 3)).any(axis=(1, 2)).all()
    before = whole_block(memory, layer, 3)
    neighbour = whole_block(memory, layer, 4)
    memory.poison([3], group=0)
    assert memory.life(3) == 1
    assert memory.life(4) == 0
    assert (whole_block(memory, layer, 3) == poison_of(memory, layer, 3, 1)).all()
    assert (whole_block(memory, layer, 3) != before).any(axis=(1, 2)).all()
    assert (whole_block(memory, layer, 4) == neighbour).all()
    assert Owned(memory).audit() == []


def test_poison_of_no_block_changes_nothing() -> None:
    memory = build_memory(FEW)
    before = memory.raw.clone()
    memory.poison([], group=0)
    assert torch.equal(memory.raw, before)


@settings(max_examples=20, deadline=None)
@given(shape=shapes())
def test_poison_fills_a_block_of_any_shape(shape: KVCacheShape) -> None:
    memory = build_memory(shape)
    compute(memory, CHAIN, [2, 4], 2 * shape.block_size)
    memory.poison([4, 2], group=0)
    for name in memory.layers:
        for block in (2, 4):
            assert (whole_block(memory, name, block) == poison_of(memory, name, block, 1)).all()
    assert Owned(memory).audit() == []


# -- the audit -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), data=st.data())
def test_the_audit_names_every_planted_slot_and_no_other(shape: KVCacheShape, data: st.DataObject) -> None:
    memory = build_memory(shape)
    ground = Owned(memory)
    for block in (1, 2):
        ground.own(block, data.draw(st.integers(0, shape.block_size)))
    planted = data.draw(
        st.dictionaries(
            st.tuples(st.sampled_from(sorted(memory.layers)), st.integers(0, shape.num_blocks - 1)),
            st.sets(st.integers(0, shape.block_size - 1), min_size=1, max_size=4),
            min_size=1,
            max_size=4,
        )
    )
    for (name, block), slots in planted.items():
        layer = memory.layers[name]
        rows, offsets = layer.slots(np.full(len(slots), block), np.asarray(sorted(slots)))
        connector_view(memory, name)[rows, :, offsets, :] ^= 0xFF
    expected = {
        (name, block): tuple(sorted(slot for slot in slots if slot < ground.first_writable[block]))
        for (name, block), slots in planted.items()
    }
    found = ground.audit()
    assert {(write.layer, write.block): write.slots for write in found} == {k: v for k, v in expected.items() if v}
    for write in found:
        layer = memory.layers[write.layer]
        assert write.observed is not None
        assert write.observed.shape == (len(write.slots), layer.content.heads, layer.content.content_bytes)
        assert (write.observed.numpy() == whole_block(memory, write.layer, write.block)[list(write.slots)]).all()
    assert ground.audit() == [], "each write is reported once"


@pytest.mark.parametrize("piece", [8, 1 << 10, 4 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_audit_finds_the_same_in_pieces_of_any_size(
    layout: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = build_memory(KVCacheShape(layout=layout, num_blocks=6))
    ground = Owned(memory)
    ground.own(1)
    ground.own(2, 5)
    monkeypatch.setattr(memory_module, "PIECE", piece)
    for name in memory.layers:
        connector_view(memory, name)[1:4] ^= 0xFF
    memory.raw[-1] ^= 1
    found = ground.audit()
    whole = next(iter(memory.layers.values())).content
    per_slot = whole.heads * whole.content_bytes
    assert {(write.layer, write.block): (write.slots, write.bytes_changed) for write in found} == {
        ("guard bytes behind the last view", -1): ((-1,), 1),
        **{(name, 2): (tuple(range(5)), 16 * per_slot) for name in memory.layers},
        **{(name, 3): (tuple(range(16)), 16 * per_slot) for name in memory.layers},
    }
    assert memory.untouched()
    assert ground.audit() == []


def one_byte(memory: KVMemory, layer: str, block: int, slot: int) -> None:
    connector_view(memory, layer)[block, 0, slot, 0] ^= 1


@pytest.mark.parametrize("block", [0, 5], ids=["null block", "free block"])
def test_one_bit_in_a_block_that_nobody_owns(block: int) -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    layer = list(memory.layers)[1]
    one_byte(memory, layer, block, 9)
    (write,) = ground.audit()
    assert (write.block, write.layer, write.slots, write.bytes_changed) == (block, layer, (9,), 1)


def test_computed_slots_are_protected_and_the_tail_is_not() -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    ground.own(1, first_writable=10)
    layer = next(iter(memory.layers))
    compute(memory, CHAIN, [1], 10)
    one_byte(memory, layer, 1, 10)
    one_byte(memory, layer, 1, 15)
    assert ground.audit() == []
    one_byte(memory, layer, 1, 9)
    assert [write.slots for write in ground.audit()] == [(9,)]


def test_shared_blocks_are_protected_as_a_whole() -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    ground.own(2, first_writable=16)
    layer = next(iter(memory.layers))
    one_byte(memory, layer, 2, 15)
    assert [(write.block, write.slots) for write in ground.audit()] == [(2, (15,))]


def test_load_targets_may_be_written_entirely() -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    ground.own(3)
    for name in memory.layers:
        connector_view(memory, name)[3] = 7
    assert ground.audit() == []


@pytest.mark.parametrize("offset", [0, GUARD_BYTES - 1], ids=["first", "last"])
def test_the_guard_behind_the_last_view(offset: int) -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    memory.raw[memory.raw.numel() - GUARD_BYTES + offset] ^= 0xFF
    (write,) = ground.audit()
    assert (write.block, write.layer) == (-1, "guard bytes behind the last view")
    assert write.bytes_changed == 1
    assert ground.audit() == []


@settings(max_examples=20, deadline=None)
@given(
    shape=shapes().filter(lambda shape: shape.layers[0].page_padding > 0),
    owned=st.sets(st.integers(1, 5), max_size=3),
)
def test_padding_belongs_to_nobody_and_is_not_accused(shape: KVCacheShape, owned: set[int]) -> None:
    memory = build_memory(shape)
    ground = Owned(memory)
    for block in owned:
        ground.own(block, first_writable=shape.block_size)
    used = torch.zeros(memory.raw.numel(), dtype=torch.bool)
    for layer in memory.layers.values():
        used.as_strided(layer.bytes.size(), layer.bytes.stride(), layer.bytes.storage_offset()).fill_(True)
    padding = ~used
    padding[memory.raw.numel() - GUARD_BYTES :] = False
    assert int(padding.sum()) > 0
    memory.raw[padding] ^= 0xFF
    assert ground.audit() == []


def test_the_engine_overwrites_a_stray_write_before_anybody_looks() -> None:
    memory = build_memory(FEW)
    ground = Owned(memory)
    layer = next(iter(memory.layers))
    one_byte(memory, layer, 4, 0)
    compute(memory, CHAIN, [4], 1)
    assert ground.audit() == []


def test_groups_that_alias_the_same_bytes_are_judged_by_the_owner() -> None:
    sliding = LayerShape(kind="sliding_window", sliding_window=32)
    memory = build_memory(KVCacheShape((LayerShape(), sliding), num_blocks=400))
    groups = {layer.group for layer in memory.layers.values()}
    assert groups == {0, 1}
    ground = Owned(memory)
    ground.own(1, 16, group=0)
    ground.own(2, 16, group=1)
    ground.own(3, 0, group=1)
    of = {group: next(name for name, layer in memory.layers.items() if layer.group == group) for group in groups}
    for block in (1, 2, 3):
        one_byte(memory, of[1], block, 5)
    found = ground.audit()
    assert [(write.block, memory.layers[write.layer].group, write.slots) for write in found] == [
        (1, 0, (5,)),
        (2, 1, (5,)),
    ]


def test_the_group_of_a_block_decides_what_its_poison_is() -> None:
    sliding = LayerShape(kind="sliding_window", sliding_window=32)
    memory = build_memory(KVCacheShape((LayerShape(), sliding), num_blocks=400))
    of = {layer.group: name for name, layer in memory.layers.items()}
    memory.poison([7], group=1)
    assert (whole_block(memory, of[1], 7) == poison_of(memory, of[1], 7, 1)).all()
    assert (whole_block(memory, of[0], 7) != poison_of(memory, of[0], 7, 1)).any()


def recurrent_memory(layout: str = "LBNHC") -> KVMemory:
    """Two layers of attention and two recurrent ones on pages of 1024 bytes, of which the states take 632."""
    mixer = LayerShape(kind="recurrent", states=STATES, page_padding=392)
    return build_memory(KVCacheShape((LayerShape(), mixer), layout, num_blocks=6))


@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC", "BLHNC", "BLNHC"])
def test_block_of_a_recurrent_layer_has_one_slot_for_all_its_tokens(layout: str) -> None:
    memory = recurrent_memory(layout)
    name, layer = next((name, layer) for name, layer in memory.layers.items() if layer.recurrent)
    assert name.endswith(".mixer")
    assert (layer.block_size, layer.slots_per_block, layer.content.content_bytes) == (16, 1, 632)
    assert memory.views[name].shape == (6, 1, 1, 632)
    assert memory.views[name].dtype is torch.int8
    state = expand(np.array([7], dtype=np.uint64), layer.content)
    memory.write(name, np.array([3]), np.array([12]), state)
    assert torch.equal(memory.read(name, np.array([3]), np.array([0])), state)
    assert torch.equal(connector_view(memory, name)[3], state[0][:, None])


def test_state_is_protected_as_soon_as_a_token_of_its_block_is_computed() -> None:
    memory = recurrent_memory()
    name, layer = next((name, layer) for name, layer in memory.layers.items() if layer.recurrent)
    ground = Owned(memory)
    ground.own(1, 0, group=layer.group)
    ground.own(2, 1, group=layer.group)
    for block in (1, 2):
        connector_view(memory, name)[block] ^= 0xFF
    assert [(write.block, write.layer, write.slots) for write in ground.audit()] == [(2, name, (0,))]


def test_recurrent_layers_stand_beside_others_in_the_layouts_in_which_vllm_takes_them() -> None:
    mixer = LayerShape(kind="recurrent", states=STATES, page_padding=392)
    for layout in LAYOUTS:
        try:
            shape = KVCacheShape((LayerShape(), mixer), layout, num_blocks=4)
        except ShapeError:
            refused = unchecked(KVCacheShape, layers=(LayerShape(), mixer), layout=layout, num_blocks=4)
            assert not works_in_vllm(refused), f"vLLM accepts what the kit refuses: {layout}"
        else:
            assert len(build_memory(shape).layers) == 4, layout


# -- shapes that vLLM refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "mla"])
def test_a_shape_is_refused_exactly_when_vllm_refuses_it(kind: str) -> None:
    """Layout, heads, layers, padding and kernel blocks in all combinations: our rules against vLLM itself."""
    refused = 0
    heads = (1,) if kind == "mla" else (1, 2)
    for layout, num_heads, count, padding, kernel in itertools.product(LAYOUTS, heads, (1, 2), (0, 64), (None, 16, 8)):
        fields: dict[str, Any] = {"kind": kind, "count": count, "num_kv_heads": num_heads, "page_padding": padding}
        whole: dict[str, Any] = {"layout": layout, "num_blocks": 4, "kernel_block_size": kernel}
        combination = f"{layout}, {num_heads} heads, {count} layers, padding {padding}, kernel block {kernel}"
        try:
            KVCacheShape((LayerShape(**fields),), **whole)
        except ShapeError:
            refused += 1
            shape = unchecked(KVCacheShape, layers=(unchecked(LayerShape, **fields),), **whole)
            assert not works_in_vllm(shape), f"vLLM accepts what the kit refuses: {combination}"
        else:
            memory = build_memory(KVCacheShape((LayerShape(**fields),), **whole))
            assert len(memory.layers) == count, combination
    assert refused > 10


def works_in_vllm(shape: KVCacheShape) -> bool:
    """Whether vLLM allocates this shape, and in a way that lets every slot keep its own bytes."""
    try:
        memory = build_memory(shape)
    except (AssertionError, ValueError):
        return False
    return int(writers_per_byte(memory).max()) == 1


@pytest.mark.parametrize(
    ("layer", "whole", "sentence"),
    [
        ({}, {"kernel_block_size": 5}, "kernel_block_size 5 must divide every block size"),
        ({}, {"layout": "BNLHC"}, "layout must be one of LBNHC, "),
        ({"page_padding": 3}, {}, "page_padding must be a multiple of the 2-byte element of float16"),
        ({}, {"num_blocks": 1}, "num_blocks must be at least 2"),
        ({"page_padding": 8}, {"layout": "LHBNC"}, "layout LHBNC cannot pad pages of several heads"),
        ({}, {"layout": "BLHNC", "kernel_block_size": 8}, "BLHNC does not store these layers so"),
    ],
    ids=["kernel", "layout", "padding", "blocks", "heads", "dense"],
)
def test_what_vllm_refuses_is_refused_first_in_one_sentence(
    layer: dict[str, Any], whole: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ShapeError, match=sentence):
        KVCacheShape((LayerShape(**layer),), **whole)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        build_memory(unchecked(KVCacheShape, layers=(unchecked(LayerShape, **layer),), **whole))


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"num_kv_heads": 0}, "num_kv_heads must be at least 1, not 0"),
        ({"head_size": 0}, "head_size must be at least 1, not 0"),
        ({"block_size": -1}, "block_size must be at least 1, not -1"),
        ({"dtype": "float8"}, "dtype must be one of float16, bfloat16, float32, uint8, not 'float8'"),
        ({"kind": "sliding_window"}, "sliding_window is the window in tokens of kind 'sliding_window'"),
        ({"sliding_window": 8}, "sliding_window is the window in tokens of kind 'sliding_window'"),
        ({"kind": "mla", "num_kv_heads": 2}, "an MLA layer has one head slot and no separate V"),
        ({"kind": "mla", "num_kv_heads": 1, "head_size_v": 4}, "an MLA layer has one head slot and no separate V"),
        ({"page_padding": -2}, "page_padding must be a multiple"),
        ({"kind": "recurrent"}, "states are those of kind 'recurrent', and of no other kind"),
        ({"states": STATES}, "states are those of kind 'recurrent', and of no other kind"),
        ({"kind": "recurrent", "states": (((3, 0), "float16"),)}, "a state has dimensions of at least 1"),
        ({"kind": "recurrent", "states": (((3, 4), "float8"),)}, "a state has .* one of the dtypes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_senseless_layer_names_its_field(layer: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ShapeError, match=sentence):
        LayerShape(**layer)


def test_a_cache_without_layers_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one layer shape"):
        KVCacheShape(layers=())


def test_a_shape_describes_itself_in_one_line() -> None:
    mla = LayerShape(kind="mla", num_kv_heads=1, head_size=24, dtype="bfloat16")
    window = LayerShape(kind="sliding_window", sliding_window=32, head_size_v=4, page_padding=64)
    assert KVCacheShape((mla,)).describe() == "LBNHC, 32 blocks: 2 layers MLA latent x 24 bfloat16, block 16"
    text = KVCacheShape((window,), "BLHNC").describe()
    assert "2 heads x 8+4 float16" in text
    assert "window 32" in text
    assert "64 B padding" in text
    assert "kernel block 8" in KVCacheShape(kernel_block_size=8).describe()
    mixer = LayerShape(kind="recurrent", states=STATES, page_padding=392)
    text = KVCacheShape((mixer,)).describe()
    assert "2 recurrent layers of 3x20 float16 and 2x8x8 float32, block 16, 392 B padding" in text


def test_kernel_blocks_beside_recurrent_layers_are_refused() -> None:
    mixer = LayerShape(kind="recurrent", states=STATES, page_padding=392)
    with pytest.raises(ShapeError, match="kernel blocks beside recurrent layers are not simulated"):
        KVCacheShape((LayerShape(), mixer), kernel_block_size=8)
