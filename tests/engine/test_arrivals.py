"""Whether what comes to the blocks of a load after its report is that load, or one that misses its own blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvconform.engine.vllm_engine.arrivals import Awaited
from kvconform.kvcache.memory import LayerMemory
from kvconform.kvcache.oracle import Identity, PageContent, TokenChain
from kvconform.kvcache.provenance import Origin, Provenance

LAYER = LayerMemory("layer", 0, 16, 1, PageContent(2, 8), torch.zeros(1, dtype=torch.uint8))
STATES = replace(LAYER, recurrent=True)
#: Token 16 of a request, whose second block is block 4; "same" has the same prompt, and "other" a different one.
TOKEN = Origin("content", "same", 16, "layer")


@pytest.fixture
def awaited() -> Awaited:
    provenance = Provenance()
    chains = {name: TokenChain(tuple(range(start, start + 48)), Identity()) for name, start in (("r", 0), ("other", 9))}
    provenance.know("same", chains["r"], 48)
    provenance.know("other", chains["other"], 48)
    found = Awaited(provenance)
    found.add("r", chains["r"], [7, 4, 8], [7, 4, 8])
    return found


@pytest.mark.parametrize(
    "origin",
    [
        TOKEN,
        replace(TOKEN, kind="tainted"),
        replace(TOKEN, detail="heads in the order 1, 0"),
        # Nothing says whose these are.
        Origin("zero"),
        Origin("constant", detail="the 2-byte value 0x0001"),
        Origin("unknown"),
    ],
)
def test_what_may_be_the_load_is_owed_to_its_request(awaited: Awaited, origin: Origin) -> None:
    assert awaited.owed(LAYER, 0, 4, (0,), (origin,)) == ("r",)


@pytest.mark.parametrize(
    "origin",
    [
        replace(TOKEN, label="other"),
        replace(TOKEN, position=17),
        replace(TOKEN, position=0),
        replace(TOKEN, layer="another"),
        replace(TOKEN, rank=1),
        Origin("poison", "block 9", 0, "layer"),
    ],
)
def test_kv_of_other_tokens_is_owed_to_nobody(awaited: Awaited, origin: Origin) -> None:
    assert awaited.owed(LAYER, 0, 4, (0,), (origin,)) == ()


def test_one_slot_of_the_load_is_enough(awaited: Awaited) -> None:
    beside = replace(TOKEN, label="other")
    assert awaited.owed(LAYER, 0, 4, (0, 1), (beside, replace(TOKEN, position=17))) == ("r",)


def test_other_blocks_are_owed_to_nobody(awaited: Awaited) -> None:
    assert awaited.owed(LAYER, 0, 5, (0,), (TOKEN,)) == ()


@pytest.mark.parametrize(("position", "owed"), [(15, ()), (16, ("r",)), (31, ("r",)), (32, ())])
def test_a_state_is_that_after_any_token_of_its_block(awaited: Awaited, position: int, owed: tuple[str, ...]) -> None:
    assert awaited.owed(STATES, 0, 4, (0,), (replace(TOKEN, position=position),)) == owed
