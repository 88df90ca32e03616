"""What is said of slots whose bytes are known: kinds, words, and whose they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvconform.kvcache.oracle import TokenChain
from kvconform.kvcache.provenance import Origin, Provenance, describe, held_kind, held_words

LAYER, OTHER = "model.layers.0", "model.layers.1"
OWN = Origin("content", "r1", 5, LAYER)
POISON = Origin("poison", "block 3", 5, LAYER)


# -- one slot ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "own", "kind"),
    [
        (POISON, False, "never written"),
        (replace(POISON, label="an earlier life of block 3"), False, "stale"),
        (replace(OWN, kind="tainted"), True, "on wrong KV"),
        (Origin("zero"), False, "zero"),
        (Origin("constant"), False, "constant"),
        (Origin("unknown"), False, "unknown"),
        (OWN, False, "other request"),
        (replace(OWN, layer=OTHER, rank=1, position=6), False, "other request"),
        (replace(OWN, layer=OTHER, rank=1, position=6), True, "other layer"),
        (replace(OWN, rank=1, position=6), True, "other rank"),
        (replace(OWN, position=6), True, "other position"),
        (replace(OWN, detail="K and V swapped"), True, "rearranged"),
    ],
)
def test_kind_is_the_first_difference_from_what_belongs_there(origin: Origin, own: bool, kind: str) -> None:
    assert held_kind(origin, 5, LAYER, 0, own=own) == kind


@pytest.mark.parametrize(
    ("origin", "last", "words"),
    [
        (Origin("zero"), 0, "zeros"),
        (Origin("constant", detail="the 1-byte value 0xa5"), 0, "the 1-byte value 0xa5"),
        (Origin("unknown", detail="a mixture of slots"), 0, "a mixture of slots"),
        (Origin("unknown"), 0, "bytes that nobody computed in this run"),
        (POISON, 9, "poison of block 3"),
        (OWN, 5, "r1's token 5"),
        (OWN, 9, "r1's tokens 5-9"),
        (replace(OWN, kind="tainted"), 9, "r1's tokens 5-9"),
        (replace(OWN, layer=OTHER), 5, f"r1's token 5 of layer {OTHER}"),
        (replace(OWN, rank=1), 5, "r1's token 5 of rank 1"),
        (replace(OWN, detail="K and V swapped"), 5, "r1's token 5 with K and V swapped"),
        (
            replace(OWN, layer=OTHER, rank=1, detail="K and V swapped"),
            5,
            f"r1's token 5 of layer {OTHER}, of rank 1, with K and V swapped",
        ),
    ],
)
def test_words_name_the_slots_and_what_is_strange_about_them(origin: Origin, last: int, words: str) -> None:
    assert held_words(origin, replace(origin, position=last), LAYER, 0) == words


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "sentences"),
    [
        (replace(OWN, position=6), 1),
        (replace(OWN, position=7), 2),
        (replace(OWN, position=6, label="r2"), 2),
        (replace(OWN, position=6, layer=OTHER), 2),
        (replace(OWN, position=6, rank=1), 2),
        (replace(OWN, position=6, detail="K and V swapped"), 2),
        (Origin("zero"), 2),
    ],
)
@pytest.mark.parametrize("kind", ["content", "tainted", "poison"])
def test_slots_of_neighbouring_places_are_one_sentence(kind: str, second: Origin, sentences: int) -> None:
    after = replace(second, kind=kind) if second.label else second
    assert len(describe([1, 2], [replace(OWN, kind=kind), after], LAYER)) == sentences
    assert len(describe([1, 3], [replace(OWN, kind=kind), after], LAYER)) == 2


def test_same_bytes_of_another_kind_are_another_sentence() -> None:
    assert len(describe([1, 2], [OWN, replace(OWN, kind="tainted", position=6)], LAYER)) == 2
    assert len(describe([1, 2], [Origin("constant", detail="a"), Origin("constant", detail="b")], LAYER)) == 2
    assert len(describe([1, 2], [Origin("constant", detail="a"), Origin("constant", detail="a")], LAYER)) == 1


def test_everything_strange_about_a_run_is_in_its_sentence() -> None:
    strange = replace(OWN, kind="tainted", layer=OTHER, rank=1, detail="K and V swapped")
    (said,) = describe([8], [strange], LAYER)
    assert said == (
        f"token 8 holds r1's token 5 (of layer {OTHER}, of rank 1, with K and V swapped, computed on top of wrong KV)"
    )


# -- whose tokens ------------------------------------------------------------------------------------------------------

CHAIN = TokenChain(tuple(range(40)))
FORK = TokenChain((*range(20), *range(100, 120)))


@pytest.mark.parametrize(
    ("label", "position", "own"),
    [("r1", 0, True), ("r1", 19, True), ("r1", 20, False), ("r1", 29, False), ("r2", 20, True), ("r9", 0, False)],
)
def test_content_is_that_of_the_tokens_that_it_shares(label: str, position: int, own: bool) -> None:
    provenance = Provenance()
    provenance.know("r1", CHAIN, 30)
    provenance.know("r2", FORK, 40)
    assert provenance.is_of(Origin("content", label, position, LAYER), FORK) is own


def test_id_that_is_used_again_has_the_tokens_of_either_life_as_far_as_they_were_computed() -> None:
    provenance = Provenance()
    provenance.know("r1", CHAIN, 40)
    provenance.know("r1", FORK, 30)
    assert provenance.is_of(Origin("content", "r1", 29, LAYER), FORK)
    assert not provenance.is_of(Origin("content", "r1", 30, LAYER), FORK)
    assert provenance.is_of(Origin("content", "r1", 30, LAYER), CHAIN)


# -- values of short slots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 2, 4), "unknown"), ((1, 3, 3), "constant"), ((1, 1, 9), "constant"), ((1, 3, 5), "constant")],
)
def test_slot_of_more_than_eight_bytes_may_be_constant(shape: tuple[int, int, int], kind: str) -> None:
    (origin,) = Provenance().identify(np.full(shape, 7, np.uint8))
    assert origin.kind == kind


def test_slot_whose_elements_do_not_fit_is_not_constant() -> None:
    (origin,) = Provenance().identify(np.arange(1, 16, dtype=np.uint8).reshape(1, 3, 5))
    assert origin == Origin("unknown")
