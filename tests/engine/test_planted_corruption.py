"""A connector corrupts what it loads in one way: the engine's history names the way, and the checks name LOAD-01."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from bench import Bench, request, run
from planted_connectors import Tampering, Views

from kvconform.checks import examine
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.options import EngineOptions
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.kvcache.oracle import PageContent, TokenChain, expand, slot_seeds
from kvconform.kvcache.provenance import Provenance
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.report.picturing import picture_of
from kvconform.scenario.program import RequestSpec

L0, L1 = "model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"
WIDE = KVCacheShape((LayerShape(2, num_kv_heads=4, head_size=8, head_size_v=4),), num_blocks=16)
K_BYTES = 16
NOBODYS = "bytes that nobody computed in this run"


@pytest.fixture
def tamper() -> Iterator[Callable[[Callable[[Views, Any], None]], None]]:
    def install(function: Callable[[Views, Any], None]) -> None:
        Tampering.tamper = staticmethod(function)

    yield install
    Tampering.tamper = None


def computed(chain: TokenChain, first: int, last: int, layer: str, rank: int = 0) -> torch.Tensor:
    """[heads, tokens, content bytes] of a piece of a request, in the order of a registered block."""
    return expand(slot_seeds(chain.chain(first, last), layer, rank), PageContent(4, 24)).transpose(0, 1)


def reloaded(bench: Bench, options: EngineOptions | None = None) -> VllmEngine:
    """Two prompts are stored; one is asked for again: 3 blocks to load, one token to compute."""
    engine = bench.engine("Tampering", options or EngineOptions(WIDE))
    run(engine, request("other", 49, seed=2), request("store", 49, seed=1))
    engine.reset_prefix_cache()
    run(engine, request("reload", 49, seed=1))
    engine.audit()
    return engine


def said(bench: Bench, layer: str = L0) -> tuple[str, ...]:
    """What is said of the loaded slots of one layer."""
    event = next(event for event in bench.of(WrongBytes) if event.layer == layer)
    assert event.request == "reload"
    assert event.external
    return event.observed


def test_an_honest_load_is_clean(bench: Bench) -> None:
    reloaded(bench)
    assert bench.of(WrongBytes) == []
    assert examine(bench.history).clean
    assert sum(event.external_tokens for event in bench.of(Compared)) == 48


Plant = Callable[[torch.Tensor, dict[str, TokenChain]], None]


def into(slots: slice, content: Callable[[dict[str, TokenChain]], torch.Tensor]) -> Plant:
    def plant(block: torch.Tensor, chains: dict[str, TokenChain]) -> None:
        block[:, slots] = content(chains)

    return plant


def swap_k_and_v(block: torch.Tensor, chains: dict[str, TokenChain]) -> None:
    block[:] = torch.cat([block[:, :, K_BYTES:], block[:, :, :K_BYTES]], dim=2)


def reverse_heads(block: torch.Tensor, chains: dict[str, TokenChain]) -> None:
    block[:] = block.flip(0)


def lose_half_of_the_heads(block: torch.Tensor, chains: dict[str, TokenChain]) -> None:
    block[2:] = torch.from_numpy(np.random.default_rng(1).integers(0, 256, tuple(block[2:].shape), dtype=np.uint8))


def mix_heads(block: torch.Tensor, chains: dict[str, TokenChain]) -> None:
    block[1:2] = computed(chains["other"], 0, 16, L0)[1:2]


# name -> what is done to block 0 of layer 0 behind the load, and what is said of it. The request's first 16 tokens.
PLANTS: dict[str, tuple[Plant, str]] = {
    "another request": (
        into(slice(0, 16), lambda chains: computed(chains["other"], 16, 32, L0)),
        "tokens 0-15 hold other's tokens 16-31",
    ),
    "shifted by one": (
        into(slice(0, 16), lambda chains: computed(chains["store"], 1, 17, L0)),
        "tokens 0-15 hold store's tokens 1-16",
    ),
    "shifted by a block": (
        into(slice(0, 16), lambda chains: computed(chains["store"], 16, 32, L0)),
        "tokens 0-15 hold store's tokens 16-31",
    ),
    "wrong layer": (
        into(slice(0, 16), lambda chains: computed(chains["store"], 0, 16, L1)),
        f"tokens 0-15 hold store's tokens 0-15 (of layer {L1})",
    ),
    "wrong rank": (
        into(slice(0, 16), lambda chains: computed(chains["store"], 0, 16, L0, rank=1)),
        "tokens 0-15 hold store's tokens 0-15 (of rank 1)",
    ),
    "zeros": (into(slice(3, 5), lambda chains: torch.zeros(4, 2, 24, dtype=torch.uint8)), "tokens 3-4 hold zeros"),
    "constant": (
        into(slice(0, 16), lambda chains: torch.full((4, 16, 24), 0xCD, dtype=torch.uint8)),
        "tokens 0-15 hold the 1-byte value 0xcd everywhere",
    ),
    "heads in another order": (
        reverse_heads,
        "tokens 0-15 hold store's tokens 0-15 (with heads in the order 3, 2, 1, 0)",
    ),
    "K and V swapped": (swap_k_and_v, "tokens 0-15 hold store's tokens 0-15 (with K and V swapped)"),
    "half of the heads": (
        lose_half_of_the_heads,
        f"token 0 holds {NOBODYS}: 2 of 4 heads are those of store token 0 of {L0}, the others unknown",
    ),
    "mixture": (mix_heads, "token 0 holds bytes that nobody computed in this run: a mixture of slots: store token 0"),
    "nobody's bytes": (
        into(slice(0, 16), lambda chains: torch.arange(64 * 24, dtype=torch.int64).to(torch.uint8).view(4, 16, 24)),
        "tokens 0-15 hold bytes that nobody computed in this run",
    ),
}


# What the picture of the block table calls it.
KINDS = {
    "another request": "other request",
    "shifted by one": "other position",
    "shifted by a block": "other position",
    "wrong layer": "other layer",
    "wrong rank": "other rank",
    "zeros": "zero",
    "constant": "constant",
    "heads in another order": "rearranged",
    "K and V swapped": "rearranged",
}


@pytest.mark.parametrize(
    ("plant", "runner"), [*((plant, "v2") for plant in PLANTS), ("wrong layer", "v1"), ("wrong layer", "v2-full-graph")]
)
def test_each_kind_of_corruption_is_named(bench: Bench, tamper: Any, plant: str, runner: Any) -> None:
    change, expected = PLANTS[plant]
    bench.provenance = Provenance(ranks=(0, 1))

    def corrupt(views: Views, loads: Any) -> None:
        change(views[L0][loads[0].block_id], bench.engines[0].chains)

    tamper(corrupt)
    reloaded(bench, EngineOptions(WIDE, runner=runner))
    assert said(bench)[0].startswith(expected)
    assert {event.layer for event in bench.of(WrongBytes)} == {L0}
    (finding,) = examine(bench.history).findings
    assert finding.rule == "LOAD-01"
    assert finding.symptom
    assert expected in finding.observed
    assert finding.requests == ("reload",)
    picture = picture_of(finding, bench.history)
    assert picture is not None
    assert (picture.request, picture.local, picture.computed, picture.scheduled) == ("reload", 0, 48, 1)
    assert (picture.external_first, picture.external_last) == (0, 48)
    (group,) = picture.groups
    assert (group.block_size, len(group.blocks), group.layer, group.layers) == (16, 4, L0, 1)
    assert group.wrong[0].kind == KINDS.get(plant, "unknown")
    assert all(0 <= wrong.first <= wrong.last < 16 for wrong in group.wrong)


def test_a_load_that_writes_nothing_leaves_poison_of_this_life(bench: Bench, tamper: Any) -> None:
    def corrupt(views: Views, loads: Any) -> None:
        worker = bench.engines[0].worker
        assert worker is not None
        block = loads[1].block_id
        views[L1][block] = before(worker.memory, L1, block)

    tamper(corrupt)
    reloaded(bench)
    (sentence,) = said(bench, L1)
    assert sentence.startswith("tokens 16-31 hold poison of block ")
    assert sentence.endswith("(engine 1): nothing was written there")
    assert "earlier life" not in sentence


def before(memory: Any, layer: str, block: int) -> torch.Tensor:
    """What a block held before the connector wrote to it."""
    view = memory.layers[layer].bytes
    return memory.shadow.as_strided(view.size(), view.stride(), view.storage_offset())[block].clone()


def test_poison_of_an_earlier_life(bench: Bench, tamper: Any) -> None:
    engine = bench.engine("Tampering", EngineOptions(WIDE))
    assert engine.worker is not None
    memory = engine.worker.memory
    fresh = {layer: view.bytes.clone() for layer, view in memory.layers.items()}
    seen: list[int] = []

    def corrupt(views: Views, loads: Any) -> None:
        seen.append(loads[0].block_id)
        views[L0][seen[0]] = fresh[L0][seen[0]]

    tamper(corrupt)
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    run(engine, request("reload", 49))
    assert said(bench) == (
        f"tokens 0-15 hold poison of an earlier life of block {seen[0]} (engine 1): nothing was written there",
    )


def test_poison_of_another_engine(bench: Bench, tamper: Any) -> None:
    first = bench.engine("Tampering", EngineOptions(WIDE))
    run(first, request("store", 49))
    assert first.worker is not None
    free = first.worker.memory.layers[L0].bytes[14].clone()
    first.shutdown()
    tamper(lambda views, loads: views[L0][loads[2].block_id].copy_(free))
    run(bench.engine("Tampering", EngineOptions(WIDE)), request("reload", 49))
    assert said(bench) == ("tokens 32-47 hold poison of block 14 (engine 1): nothing was written there",)


def test_tokens_of_an_earlier_engine_are_named(bench: Bench, tamper: Any) -> None:
    first = bench.engine("Tampering", EngineOptions(WIDE))
    run(first, request("store", 49), request("other", 49, seed=2))
    chains = dict(first.chains)
    first.shutdown()
    tamper(lambda views, loads: views[L0][loads[0].block_id].copy_(computed(chains["other"], 0, 16, L0)))
    run(bench.engine("Tampering", EngineOptions(WIDE)), request("reload", 49))
    assert said(bench) == ("tokens 0-15 hold other's tokens 0-15",)


def test_blocks_exchanged_are_one_sentence_each(bench: Bench, tamper: Any) -> None:
    def corrupt(views: Views, loads: Any) -> None:
        for view in views.values():
            first, last = loads[0].block_id, loads[2].block_id
            view[[first, last]] = view[[last, first]]

    tamper(corrupt)
    reloaded(bench)
    assert said(bench) == ("tokens 0-15 hold store's tokens 32-47", "tokens 32-47 hold store's tokens 0-15")
    (finding,) = examine(bench.history).findings
    assert finding.expected == "reload's tokens 0-15, tokens 32-47 as they were computed when they were stored"
    assert f"in layer {L0} and 1 more" in finding.observed
    assert finding.details == ("tokens 32-47 hold store's tokens 0-15",)


def test_kv_computed_on_top_of_wrong_kv_is_tainted(bench: Bench, tamper: Any) -> None:
    """Attention carries an error into all later layers and tokens; who stores those stores garbage."""
    tamper(lambda views, loads: views[L0][loads[0].block_id].zero_())
    engine = bench.engine("Tampering", EngineOptions(WIDE))
    run(engine, request("store", 49))
    engine.reset_prefix_cache()
    # Decodes far enough to fill and store a block of its own on top of the wrong one.
    run(engine, request("reload", 49, 17))
    engine.reset_prefix_cache()
    tamper(lambda views, loads: None)
    run(engine, RequestSpec("turn", ((2, 20),), 1, continues=request("reload", 49, 17)))
    tainted = [event for event in bench.of(WrongBytes) if event.request == "turn"]
    assert {event.layer for event in tainted} == {L1}, "the first layer's KV does not depend on other KV"
    assert tainted[0].positions == tuple(range(48, 64))
    assert tainted[0].observed == ("tokens 48-63 hold reload's tokens 48-63 (computed on top of wrong KV)",)


def test_a_stray_write_is_named_too(bench: Bench, tamper: Any) -> None:
    def corrupt(views: Views, loads: Any) -> None:
        views[L0][15] = views[L0][loads[0].block_id]

    tamper(corrupt)
    reloaded(bench)
    (stray,) = [event for event in bench.of(Stray) if event.layer == L0]
    assert stray.block == 15
    assert stray.observed == ("tokens 0-15 hold store's tokens 0-15",)
    (finding,) = examine(bench.history).findings
    assert finding.rule == "LOAD-03"


def test_corruption_behind_the_load_is_not_called_external(bench: Bench, tamper: Any) -> None:
    """The slot that the request itself computes is the engine's; a write to it before the forward is harmless."""
    tamper(lambda views, loads: views[L0][loads[-1].block_id + 1].fill_(7))
    reloaded(bench)
    assert bench.of(WrongBytes) == []
    assert bench.of(Stray) == []


@pytest.mark.parametrize(
    ("whose", "step", "barred"), [("scored", 1, True), ("other", 1, False), ("scored", 2, False), (None, 1, False)]
)
def test_only_its_own_kv_in_slots_that_it_has_yet_to_compute_was_loaded_for_a_request_that_takes_no_cache(
    bench: Bench,
    tamper: Callable[[Callable[[Views, Any], None]], None],
    whose: str | None,
    step: int,
    barred: bool,
) -> None:
    engine = bench.engine("Tampering", EngineOptions(WIDE))
    run(engine, request("other", 17, seed=2), request("third", 17, seed=3))
    engine.reset_prefix_cache()
    engine.add(RequestSpec("scored", ((1, 33),), 4, prompt_logprobs=1))
    if step == 2:
        engine.step()
    asked = engine.scheduler.requests["scored"]

    def plant(views: Views, loads: Any) -> None:
        (block, *_), *_ = engine.scheduler.kv_cache_manager.get_block_ids("scored")
        kv = views[L0].view(torch.uint8)[block]
        kv[:] = 1 if whose is None else computed(engine.chains[whose], 0, 16, L0)
        kv[:, 0] ^= whose == "scored" and step == 2

    tamper(plant)
    # A load in the same step, so that start_load_kv comes before the forward.
    engine.add(request("beside", 17, 1, seed=2))
    engine.step()
    found = [write for write in bench.of(Stray) if write.layer == L0]
    assert asked.sampling_params.prompt_logprobs == 1
    assert asked.skip_reading_prefix_cache
    assert [(write.owners, write.barred) for write in found] == [(("scored",), barred)]
