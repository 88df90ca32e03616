"""Recurrent layers beside full attention: one state per block, kept where the engine says so."""

from __future__ import annotations

import pytest

from kvconform.conformance import Conformance
from kvconform.scenario import recurrent


@pytest.mark.kvconform_rules("HMA-06", "LAY-16")
def test_load_brings_the_state_at_its_end(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """For recurrent groups the state block of the promised boundary is transferred, not blocks sliced by tokens."""
    conformance.demand_capability("hma")
    conformance.judge(request, recurrent.states())


@pytest.mark.kvconform_rules("META-10")
def test_states_are_stored_from_the_blocks_that_are_offered(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """Recurrent states are saved from the block ids offered for the step, before the engine gives the blocks away."""
    conformance.demand_capability("mamba")
    conformance.judge(request, recurrent.on_the_move())


@pytest.mark.kvconform_rules("MATCH-23")
def test_load_behind_a_divergent_local_hit_restores_the_state(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """supports_divergent_local_hybrid_hits is claimed only if every load restores the recurrent state, too."""
    conformance.demand_capability("mamba")
    conformance.judge(request, recurrent.divergent_hits())
