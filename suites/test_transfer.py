"""Round trips: KV that one request stored comes back for another, bit for bit.

Every test tries one situation (a layout, a flow of requests), on fixed examples and on drawn ones. A failure of the
situation is told apart from a failure that shows without it as well.
"""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.kvcache.shape import DTYPES, LAYOUTS
from kvconform.scenario import layouts, transfer

# Judged in every scenario beside the rule that the test is about.
ALWAYS = ("LOAD-01", "LOAD-03", "LIVE-01", "LIVE-02", "LIVE-03")

pytestmark = pytest.mark.kvconform_rules(*ALWAYS)


@pytest.mark.kvconform_rules("MATCH-01", "MATCH-04", "MATCH-07", "ROLE-06", "ROLE-08")
def test_reload_of_every_length_around_block_boundaries_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Loaded slots hold bit for bit what was saved for their tokens."""
    conformance.judge(request, transfer.reload())


@pytest.mark.kvconform_rules("LAY-03")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reload_in_each_physical_layout_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest, layout: str
) -> None:
    """Layer tensors are strided views of one allocation: strides and offsets are respected in every layout."""
    conformance.judge(request, layouts.layout(layout))


@pytest.mark.kvconform_rules("LAY-13")
@pytest.mark.parametrize("dtype", DTYPES)
def test_reload_of_each_dtype_returns_every_bit_pattern(
    conformance: Conformance, request: pytest.FixtureRequest, dtype: str
) -> None:
    """KV is copied as bytes, whatever the dtype, and never converted."""
    conformance.judge(request, layouts.dtype(dtype))


@pytest.mark.kvconform_rules("LAY-15")
def test_reload_with_different_k_and_v_widths_and_head_counts_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """K and V may differ in width; dimensions are known, not guessed."""
    conformance.judge(request, layouts.head_widths())


@pytest.mark.kvconform_rules("LAY-14", "LAY-01")
def test_reload_of_an_mla_cache_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """An MLA cache has one latent per token, with no separate K and V."""
    conformance.judge(request, layouts.mla())


@pytest.mark.kvconform_rules("LAY-12")
def test_reload_with_padded_pages_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Padding between pages belongs to no token."""
    conformance.judge(request, layouts.padded_pages())


@pytest.mark.kvconform_rules("LAY-10")
def test_reload_with_kernel_blocks_smaller_than_blocks_returns_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A scheduler block is several rows of the registered tensor when vLLM splits it into kernel blocks."""
    conformance.judge(request, layouts.kernel_blocks())


@pytest.mark.kvconform_rules("META-07")
def test_prompt_stored_in_prefill_chunks_comes_back_whole(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Only computed tokens are stored: a step may hold only a part of the prompt."""
    conformance.judge(request, transfer.chunked_prefill())


@pytest.mark.kvconform_rules("META-07")
def test_drafts_that_are_refused_are_not_stored(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Only committed tokens are stored: a step may hold drafts of speculative decoding that are refused later."""
    conformance.judge(request, transfer.drafts())


@pytest.mark.kvconform_rules("ALLOC-01", "ALLOC-02", "MATCH-03", "MATCH-04")
def test_load_behind_a_local_hit_fills_its_own_positions_only(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A load fills the positions behind the local hit and leaves the shared prefix alone."""
    conformance.judge(request, transfer.partly_local())


@pytest.mark.kvconform_rules("MATCH-05")
def test_match_of_a_completely_stored_prompt_leaves_a_token_to_compute(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A synchronous match leaves at least one token to compute."""
    conformance.judge(request, transfer.full_hit())


@pytest.mark.kvconform_rules("MATCH-15")
def test_request_for_prompt_log_probabilities_is_computed_whole(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """A request with skip_reading_prefix_cache set gets no external KV."""
    conformance.judge(request, transfer.prompt_logprobs())


@pytest.mark.kvconform_rules("ALLOC-05")
def test_requests_of_one_step_that_share_a_prefix_all_get_its_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Loaded blocks are shared at once, even by a second request of the same step."""
    conformance.judge(request, transfer.shared_prefix())


@pytest.mark.kvconform_rules("PRE-01")
def test_preempted_request_resumes_and_is_reloaded_right(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """State kept for a preempted request starts over: new query, new allocation, other block ids."""
    conformance.judge(request, transfer.preemption())


@pytest.mark.kvconform_rules("SAVE-13")
def test_next_turn_on_generated_tokens_finds_no_uncomputed_slot(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """The slot of the last sampled token is never stored: no forward computed it."""
    conformance.judge(request, transfer.next_turn())


def test_restarted_engine_on_the_same_store_gets_the_stored_bytes(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Loaded slots hold bit for bit what was saved for their tokens, by whichever engine."""
    conformance.judge(request, transfer.restart())


@pytest.mark.kvconform_rules("LOAD-02")
def test_load_is_complete_without_layer_hooks(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Synchronous loads are complete when start_load_kv returns, unless the class requires piecewise graphs."""
    conformance.judge(request, transfer.full_graph())
