"""Cache identity: what only looks alike is never shared, and what is the same is found again."""

from __future__ import annotations

import pytest

from kvconform.checks.identity import found_again
from kvconform.conformance import Conformance
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.reopening import reopen
from kvconform.outcomes import NotApplicable
from kvconform.scenario import identity
from kvconform.scenario.exploration import Refused, refusal_words
from kvconform.scenario.identity import LookAlike
from kvconform.scenario.program import Program

ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")


@pytest.mark.kvconform_rules("MATCH-17", *ALWAYS)
@pytest.mark.parametrize("pair", identity.LOOK_ALIKES, ids=lambda pair: pair.what)
def test_requests_of_the_same_tokens_that_differ_otherwise_share_nothing(
    conformance: Conformance, request: pytest.FixtureRequest, pair: LookAlike
) -> None:
    """Keys separate everything that changes the KV of a token."""
    if not pair.told_apart:
        raise NotApplicable("block hashes of this release contain no adapter paths and no kinds of extra keys")
    conformance.judge(request, identity.look_alike(pair))


@pytest.mark.kvconform_rules("MATCH-17", *ALWAYS)
def test_look_alikes_of_one_step_share_nothing(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Keys separate LoRA adapters, multimodal items with their position and cache salts in any mixture."""
    conformance.judge(request, identity.many_look_alikes())


@pytest.mark.kvconform_rules("MATCH-25", *ALWAYS)
def test_prompts_given_as_embeddings_are_told_apart(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Requests without token ids are handled: only block hashes tell their contents apart."""
    conformance.judge(request, identity.embeddings())


@pytest.mark.kvconform_rules("MATCH-20", *ALWAYS)
def test_hits_do_not_depend_on_local_prefix_caching(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Hits based on block_hashes work with prefix caching switched off."""
    conformance.judge(request, identity.without_local_cache())


@pytest.mark.kvconform_rules("MATCH-18", *ALWAYS)
@pytest.mark.parametrize("what", identity.SET_UPS)
def test_engines_that_compute_other_kv_share_nothing_on_one_store(
    conformance: Conformance, request: pytest.FixtureRequest, what: str
) -> None:
    """Keys in a shared store also separate model, dtype, parallel sizes, block size and layout."""
    conformance.demand_capability("persistence")
    try:
        conformance.examine(Program("another set-up", identity.SET_UPS[what]))
    except Refused as error:
        raise NotApplicable(refusal_words(str(error))) from None
    conformance.judge(request, identity.other_set_up(what))


@pytest.mark.kvconform_rules("SAVE-18")
def test_process_with_another_hash_seed_finds_what_was_stored(
    conformance: Conformance, otherwise_hashing: Nursery, request: pytest.FixtureRequest
) -> None:
    """Keys do not depend on addresses, on Python's hash seed or on a per-process random number."""
    conformance.demand_capability("persistence")
    try:
        reopened = reopen(conformance, otherwise_hashing, *identity.stored_and_asked_for())
    except Refused as error:
        raise NotApplicable(refusal_words(str(error))) from None
    conformance.conclude(request, *found_again(reopened))
