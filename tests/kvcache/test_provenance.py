"""Asked what a piece of memory is, the oracle names every kind of corruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_bench import build_memory, compute, connector_view, places, shapes

from kvconform.kvcache import provenance as provenance_module
from kvconform.kvcache.memory import KVMemory
from kvconform.kvcache.oracle import Identity, PageContent, TokenChain, expand, poison_seeds, slot_seeds
from kvconform.kvcache.provenance import Origin, Provenance, describe, runs, span
from kvconform.kvcache.shape import KVCacheShape, LayerShape

pytestmark = pytest.mark.usefixtures("vllm_cpu")

SHAPE = KVCacheShape((LayerShape(2, num_kv_heads=4, head_size=8, head_size_v=4),), num_blocks=8)
L0, L1 = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"
TAINT = 0x123456789ABCDEF


class Scene:
    """Two requests of 40 tokens in blocks 1-3 and 4-6 of one engine; whatever is asked about lies in blocks 1-3."""

    def __init__(self, ranks: tuple[int, ...] = (0,), shape: KVCacheShape = SHAPE) -> None:
        self.memory = build_memory(shape, engine=1)
        self.provenance = Provenance(ranks=ranks)
        self.provenance.know_memory(self.memory, " (engine 1)")
        self.chains = {"r1": TokenChain(tuple(range(100, 140))), "r2": TokenChain(tuple(range(500, 540)))}
        for (request, chain), blocks in zip(self.chains.items(), ([1, 2, 3], [4, 5, 6]), strict=True):
            compute(self.memory, chain, blocks, 40)
            self.provenance.know(request, chain, 40)

    def content(
        self, request: str, first: int, last: int, layer: str = L0, *, rank: int = 0, taint: int = 0
    ) -> np.ndarray:
        """[tokens, heads, content bytes] as computed."""
        seeds = slot_seeds(self.chains[request].chain(first, last), layer, rank) ^ np.uint64(taint)
        return expand(seeds, self.memory.layers[layer].content).numpy()

    def plant(self, layer: str, first: int, content: np.ndarray) -> tuple[str, ...]:
        """A connector puts ``content`` at r1's positions from ``first`` on; what is said about it."""
        blocks, offsets = places([1, 2, 3], 16, first + len(content))
        view = connector_view(self.memory, layer)
        for block, offset, slot in zip(blocks[first:], offsets[first:], content, strict=True):
            view[int(block), :, int(offset)] = torch.from_numpy(slot.copy())
        return self.ask(layer, first, first + len(content))

    def ask(self, layer: str, first: int, last: int) -> tuple[str, ...]:
        blocks, offsets = places([1, 2, 3], 16, last)
        observed = self.memory.read(layer, blocks[first:], offsets[first:]).numpy()
        return describe(range(first, last), self.provenance.identify(observed), layer)


@pytest.fixture
def scene(vllm_cpu: object) -> Scene:
    return Scene()


# -- one kind of corruption after the other --------------------------------------------------------------------


def test_right_bytes_are_named_too(scene: Scene) -> None:
    assert scene.ask(L0, 3, 30) == ("tokens 3-29 hold r1's tokens 3-29",)


def test_another_requests_tokens(scene: Scene) -> None:
    assert scene.plant(L0, 16, scene.content("r2", 16, 32)) == ("tokens 16-31 hold r2's tokens 16-31",)


@pytest.mark.parametrize("shift", [-16, -1, 1, 8])
def test_shifted_by_some_tokens(scene: Scene, shift: int) -> None:
    said = scene.plant(L0, 16, scene.content("r1", 16 + shift, 32 + shift))
    assert said == (f"tokens 16-31 hold r1's tokens {16 + shift}-{31 + shift}",)


def test_two_blocks_exchanged(scene: Scene) -> None:
    said = scene.plant(L0, 0, np.concatenate([scene.content("r1", 16, 32), scene.content("r1", 0, 16)]))
    assert said == ("tokens 0-15 hold r1's tokens 16-31", "tokens 16-31 hold r1's tokens 0-15")


def test_tokens_in_reverse_order_are_named_one_by_one(scene: Scene) -> None:
    said = scene.plant(L0, 0, scene.content("r1", 0, 3)[::-1])
    assert said == ("token 0 holds r1's token 2", "token 1 holds r1's token 1", "token 2 holds r1's token 0")


def test_another_layer(scene: Scene) -> None:
    said = scene.plant(L0, 16, scene.content("r1", 16, 32, L1))
    assert said == (f"tokens 16-31 hold r1's tokens 16-31 (of layer {L1})",)


def test_another_rank(vllm_cpu: object) -> None:
    scene = Scene(ranks=(0, 1))
    assert scene.plant(L0, 5, scene.content("r1", 5, 9, rank=1)) == ("tokens 5-8 hold r1's tokens 5-8 (of rank 1)",)
    only_own = Scene(ranks=(0,))
    (said,) = only_own.plant(L0, 5, only_own.content("r1", 5, 9, rank=1))
    assert said == "tokens 5-8 hold bytes that nobody computed in this run"


def test_nothing_was_written(scene: Scene) -> None:
    scene.memory.poison([2], group=0)
    assert scene.ask(L0, 16, 32) == ("tokens 16-31 hold poison of block 2 (engine 1): nothing was written there",)


def test_poison_of_an_earlier_life(scene: Scene) -> None:
    scene.memory.poison([2], group=0)
    assert scene.ask(L0, 16, 17) == ("token 16 holds poison of block 2 (engine 1): nothing was written there",)
    before = connector_view(scene.memory, L0)[2].clone()
    scene.memory.poison([2], group=0)
    connector_view(scene.memory, L0)[2] = before
    (said,) = scene.ask(L0, 16, 32)
    assert said == "tokens 16-31 hold poison of an earlier life of block 2 (engine 1): nothing was written there"


def test_poison_of_a_life_to_come_is_nobodys(scene: Scene) -> None:
    seeds = poison_seeds(scene.memory.engine, 2, 1, 16, L0)
    (said,) = scene.plant(L0, 16, expand(seeds, scene.memory.layers[L0].content).numpy())
    assert said == "tokens 16-31 hold bytes that nobody computed in this run"


def test_poison_of_another_layer(scene: Scene) -> None:
    scene.memory.poison([2], group=0)
    connector_view(scene.memory, L0)[2] = connector_view(scene.memory, L1)[2]
    (said,) = scene.ask(L0, 16, 32)
    assert said.endswith(f"poison of block 2 (engine 1): nothing was written there (of layer {L1})")


def test_poison_of_another_engine(scene: Scene) -> None:
    other = build_memory(SHAPE, engine=2)
    scene.provenance.know_memory(other, " (engine 2)")
    connector_view(scene.memory, L0)[2] = connector_view(other, L0)[7]
    assert scene.ask(L0, 16, 32) == ("tokens 16-31 hold poison of block 7 (engine 2): nothing was written there",)


def test_zeros(scene: Scene) -> None:
    assert scene.plant(L0, 31, np.zeros((2, 4, 24), np.uint8)) == ("tokens 31-32 hold zeros",)


@pytest.mark.parametrize(
    ("element", "said"),
    [
        ([0xA5], "the 1-byte value 0xa5"),
        ([0x00, 0x3C], "the 2-byte value 0x3c00"),  # 1.0 in float16
        ([0x00, 0x00, 0x80, 0x3F], "the 4-byte value 0x3f800000"),  # 1.0 in float32
    ],
    ids=["byte", "float16", "float32"],
)
def test_one_constant_value(scene: Scene, element: list[int], said: str) -> None:
    content = np.tile(np.array(element, np.uint8), 4 * 24 // len(element)).reshape(1, 4, 24)
    assert scene.plant(L0, 0, content) == (f"token 0 holds {said} everywhere",)


def test_heads_in_another_order(scene: Scene) -> None:
    said = scene.plant(L0, 0, scene.content("r1", 0, 4)[:, [1, 0, 3, 2]])
    assert said == ("tokens 0-3 hold r1's tokens 0-3 (with heads in the order 1, 0, 3, 2)",)


def test_heads_of_another_request_in_another_order(scene: Scene) -> None:
    said = scene.plant(L0, 0, scene.content("r2", 0, 4)[:, ::-1])
    assert said == ("tokens 0-3 hold r2's tokens 0-3 (with heads in the order 3, 2, 1, 0)",)


def test_head_that_the_layer_does_not_have_is_nobodys(scene: Scene) -> None:
    seeds = slot_seeds(scene.chains["r1"].chain(0, 1), L0)
    wider = expand(seeds, PageContent(heads=8, content_bytes=24)).numpy()
    assert scene.plant(L0, 0, wider[:, 4:]) == ("token 0 holds bytes that nobody computed in this run",)


@pytest.mark.parametrize("width", [1, 8, 16, 23])
def test_k_and_v_exchanged(scene: Scene, width: int) -> None:
    content = scene.content("r1", 8, 12)
    swapped = np.concatenate([content[:, :, width:], content[:, :, :width]], axis=2)
    assert scene.plant(L0, 8, swapped) == ("tokens 8-11 hold r1's tokens 8-11 (with K and V swapped)",)


def test_k_and_v_of_the_only_head_exchanged(vllm_cpu: object) -> None:
    scene = Scene(shape=KVCacheShape((LayerShape(2, num_kv_heads=1),), num_blocks=8))
    swapped = np.roll(scene.content("r1", 8, 9), 8, axis=2)
    assert scene.plant(L0, 8, swapped) == ("token 8 holds r1's token 8 (with K and V swapped)",)


def test_only_one_head_with_k_and_v_exchanged_is_not_called_a_swap(scene: Scene) -> None:
    content = np.random.default_rng(3).integers(0, 256, (1, 4, 24), dtype=np.uint8)
    content[0, 0] = np.roll(scene.content("r1", 8, 9)[0, 0], 8)
    assert scene.plant(L0, 8, content) == ("token 8 holds bytes that nobody computed in this run",)


def test_half_of_the_heads(scene: Scene) -> None:
    content = np.random.default_rng(1).integers(0, 256, (1, 4, 24), dtype=np.uint8)
    content[:, :2] = scene.content("r1", 6, 7)[:, :2]
    (said,) = scene.plant(L0, 6, content)
    assert said == (
        "token 6 holds bytes that nobody computed in this run: "
        f"2 of 4 heads are those of r1 token 6 of {L0}, the others unknown"
    )


def test_a_mixture_of_two_slots(scene: Scene) -> None:
    content = scene.content("r1", 6, 7)
    content[:, 1::2] = scene.content("r2", 20, 21)[:, 1::2]
    (said,) = scene.plant(L0, 6, content)
    assert said.endswith(f"in this run: a mixture of slots: r1 token 6 of {L0}; r2 token 20 of {L0}")


@pytest.mark.parametrize(("count", "more"), [(4, ""), (5, "; and 1 more"), (6, "; and 2 more")])
def test_first_four_slots_of_a_mixture_are_named(vllm_cpu: object, count: int, more: str) -> None:
    scene = Scene(shape=KVCacheShape((LayerShape(2, num_kv_heads=6),), num_blocks=8))
    content = scene.content("r1", 0, 1)
    for head in range(count):
        content[:, head] = scene.content("r1", head, head + 1)[:, head]
    (said,) = scene.plant(L0, 6, content)
    assert said.endswith("; ".join(f"r1 token {position} of {L0}" for position in range(4)) + more)


def test_half_of_the_heads_of_a_block_that_was_never_written(scene: Scene) -> None:
    content = scene.content("r1", 6, 7)
    content[:, 2:] = scene.memory.read(L0, np.array([7]), np.array([3])).numpy()[:, 2:]
    (said,) = scene.plant(L0, 6, content)
    assert said.endswith(f"a mixture of slots: r1 token 6 of {L0}; poison of block 7 (engine 1)")


def test_heads_of_two_layers_are_a_mixture(scene: Scene) -> None:
    content = scene.content("r1", 6, 7)
    content[:, 2:] = scene.content("r1", 6, 7, L1)[:, 2:]
    (said,) = scene.plant(L0, 6, content)
    assert "a mixture of slots" in said
    assert L1 in said


def test_bytes_that_nobody_computed(scene: Scene) -> None:
    content = np.random.default_rng(2).integers(0, 256, (3, 4, 24), dtype=np.uint8)
    assert scene.plant(L0, 1, content) == ("tokens 1-3 hold bytes that nobody computed in this run",)


def test_a_token_beyond_what_was_computed_is_nobodys(scene: Scene) -> None:
    (said,) = scene.plant(L0, 16, scene.content("r1", 60, 61))
    assert said == "token 16 holds bytes that nobody computed in this run"


def test_one_flipped_bit(scene: Scene) -> None:
    content = scene.content("r1", 2, 3)
    content[0, 3, 23] ^= 1
    (said,) = scene.plant(L0, 2, content)
    assert f"3 of 4 heads are those of r1 token 2 of {L0}" in said


def test_computed_on_top_of_wrong_kv(scene: Scene) -> None:
    scene.provenance.know("r1", scene.chains["r1"], 36, TAINT)
    said = scene.plant(L0, 32, scene.content("r1", 32, 36, taint=TAINT))
    assert said == ("tokens 32-35 hold r1's tokens 32-35 (computed on top of wrong KV)",)


def test_several_kinds_in_one_request_are_separate_sentences(scene: Scene) -> None:
    content = np.concatenate(
        [
            np.zeros((4, 4, 24), np.uint8),
            scene.content("r2", 0, 4),
            scene.content("r1", 8, 12, L1),
            scene.content("r1", 0, 1),
        ]
    )
    assert scene.plant(L0, 0, content) == (
        "tokens 0-3 hold zeros",
        "tokens 4-7 hold r2's tokens 0-3",
        f"tokens 8-11 hold r1's tokens 8-11 (of layer {L1})",
        "token 12 holds r1's token 0",
    )


# -- what makes a name right -----------------------------------------------------------------------------------


def test_a_shared_prefix_is_named_after_its_first_writer(scene: Scene) -> None:
    longer = TokenChain((*scene.chains["r1"].prompt[:20], *range(900, 920)))
    scene.provenance.know("r3", longer, 40)
    scene.chains["r3"] = longer
    assert scene.plant(L0, 0, scene.content("r3", 0, 24)) == (
        "tokens 0-19 hold r1's tokens 0-19",
        "tokens 20-23 hold r3's tokens 20-23",
    )


def test_an_id_that_is_used_again_names_both_prompts(scene: Scene) -> None:
    """A second engine, or a client, may use a request id again for another prompt."""
    scene.chains["r1 again"] = TokenChain(tuple(range(700, 740)), Identity(salt="s"))
    scene.provenance.know("r1", scene.chains["r1 again"], 40)
    assert scene.plant(L0, 16, scene.content("r1 again", 16, 20)) == ("tokens 16-19 hold r1's tokens 16-19",)
    assert scene.ask(L0, 0, 16) == ("tokens 0-15 hold r1's tokens 0-15",)


def test_what_is_computed_later_is_known_later(scene: Scene) -> None:
    content = scene.content("r1", 44, 45)
    assert scene.plant(L0, 0, content) == ("token 0 holds bytes that nobody computed in this run",)
    scene.provenance.know("r1", scene.chains["r1"], 48)
    assert scene.ask(L0, 0, 1) == ("token 0 holds r1's token 44",)


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), position=st.integers(0, 30))
def test_every_shape_finds_its_own_and_other_tokens(shape: KVCacheShape, position: int) -> None:
    memory = build_memory(shape)
    provenance = Provenance()
    provenance.know_memory(memory, "")
    chain = TokenChain(tuple(range(40)))
    provenance.know("r1", chain, 40)
    for name, layer in memory.layers.items():
        observed = expand(slot_seeds(chain.chain(position, position + 2), name), layer.content).numpy()
        origins = provenance.identify(observed)
        assert [(o.kind, o.label, o.position, o.layer) for o in origins] == [
            ("content", "r1", position, name),
            ("content", "r1", position + 1, name),
        ]
        poison = memory.read(name, np.array([3]), np.array([1])).numpy()
        (origin,) = provenance.identify(poison)
        assert (origin.kind, origin.label, origin.layer) == ("poison", "block 3", name)


def test_rows_too_short_to_identify_anything_are_unknown(vllm_cpu: object) -> None:
    tiny = KVCacheShape((LayerShape(num_kv_heads=1, head_size=1, dtype="uint8"),), num_blocks=4)
    memory: KVMemory = build_memory(tiny)
    provenance = Provenance()
    provenance.know_memory(memory, "")
    chain = TokenChain((1, 2, 3))
    provenance.know("r1", chain, 3)
    name, layer = next(iter(memory.layers.items()))
    own = expand(slot_seeds(chain.chain(0, 3), name), layer.content).numpy()
    assert layer.content.content_bytes < 4
    assert provenance.identify(own) == [Origin("unknown")] * 3
    assert provenance.identify(np.array([[[3, 4]]], np.uint8)) == [Origin("unknown")]
    assert provenance.identify(np.array([[[0, 0]]], np.uint8)) == [Origin("zero")]


def test_rows_of_four_bytes_are_enough(vllm_cpu: object) -> None:
    small = KVCacheShape((LayerShape(num_kv_heads=2, head_size=2, dtype="uint8"),), num_blocks=4)
    memory, provenance, chain = build_memory(small), Provenance(), TokenChain((1, 2, 3))
    provenance.know_memory(memory, "")
    provenance.know("r1", chain, 3)
    name, layer = next(iter(memory.layers.items()))
    assert layer.content.content_bytes == 4
    own = expand(slot_seeds(chain.chain(0, 3), name), layer.content).numpy()
    assert [origin.label for origin in provenance.identify(own)] == ["r1"] * 3


def test_request_of_which_nothing_was_computed_has_no_bytes(scene: Scene) -> None:
    scene.chains["r3"] = TokenChain((7, 8, 9))
    scene.provenance.know("r3", scene.chains["r3"], 0)
    (said,) = scene.plant(L0, 0, scene.content("r3", 0, 1))
    assert said == "token 0 holds bytes that nobody computed in this run"


def test_index_is_built_once_for_as_long_as_nothing_is_added(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.ask(L0, 0, 1)
    monkeypatch.setattr(provenance_module, "expand", None)
    assert scene.ask(L0, 1, 3) == ("tokens 1-2 hold r1's tokens 1-2",)


# -- words -----------------------------------------------------------------------------------------------------


def test_runs_and_spans() -> None:
    assert runs([5, 3, 4, 9]) == [(3, 5), (9, 9)]
    assert runs([]) == []
    assert span(3, 5) == "tokens 3-5"
    assert span(9, 9, "slot") == "slot 9"


def test_describing_nothing_says_nothing() -> None:
    assert describe([], [], L0) == ()


def test_a_gap_between_positions_ends_a_sentence() -> None:
    origins = [Origin("zero"), Origin("zero"), Origin("zero")]
    assert describe([1, 2, 7], origins, L0) == ("tokens 1-2 hold zeros", "token 7 holds zeros")
