"""What trials have shown of a store, as the report says it."""

from __future__ import annotations

from kvconform.trials.traits import StoreTraits


def test_of_several_processes_the_longest_delay_counts_and_whatever_else_one_has_shown() -> None:
    one, other, usual = StoreTraits(None, 0.15), StoreTraits(256, 0.06, "one model"), StoreTraits()
    both = StoreTraits(256, 0.15, "one model")
    assert one | other == other | one == both
    assert both | usual == usual | both == both
    assert StoreTraits(0) | StoreTraits(64) == StoreTraits(64) | StoreTraits(0) == StoreTraits(64)
    assert StoreTraits(0) | usual == usual | StoreTraits(0) == StoreTraits(0)


def test_what_was_waited_for_is_said() -> None:
    (sentence,) = StoreTraits(store_delay=0.15).sentences(loading=True)
    assert sentence.startswith("stores in the background: scenarios wait 0.15 s before they look for what it stored")
    assert sentence.endswith("(store_delay = 0.15 in the configuration does without the trial)")


def test_the_size_of_chunks_is_said() -> None:
    size, delay = StoreTraits(256, 0.06).sentences(loading=True)
    assert size.startswith("keeps KV in chunks of 256 tokens: prompts have a chunk wherever others have a block")
    assert size.endswith("(chunk_size = 256 in the configuration does without the trial)")
    assert delay.startswith("stores in the background")


def test_what_finds_the_kv_of_earlier_scenarios_is_said_with_what_was_done_about_it() -> None:
    (helped,) = StoreTraits(outlives="one model").sentences(loading=True)
    (in_vain,) = StoreTraits(outlives="any model").sentences(loading=True)
    assert helped.startswith("finds what earlier scenarios have stored: each scenario's model has a name of its own")
    assert in_vain.startswith("finds what earlier scenarios have stored: what is said to be broken may come from that")


def test_that_nothing_was_found_is_said_of_those_that_never_loaded_anything() -> None:
    (sentence,) = StoreTraits(0).sentences(loading=False)
    assert sentence.startswith("has found nothing of any prompt that was computed before: what only loads can show")
    assert StoreTraits(0).sentences(loading=True) == ()


def test_nothing_is_said_of_a_usual_store() -> None:
    assert StoreTraits().sentences(loading=False) == ()
