"""Scenario families for statistics and events: a bit of everything that a connector might count or announce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family, if_wrong_bytes
from kvconform.scenario.program import (
    Action,
    Add,
    Drain,
    ForgetLocal,
    PreemptAll,
    Program,
    RequestSpec,
    ResetConnector,
    Step,
)

_OPTIONS = st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))
_LENGTHS = st.lists(st.sampled_from([5, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 1]), min_size=1, max_size=3)


def _varied(name: str, lengths: Sequence[int], tokens: int, resets: bool, options: EngineOptions) -> Program:
    """Stored, loaded, shared, extended, preempted, with idle ends in between; then reset and stored again."""
    shared = ((1, 2 * BLOCK),)
    prompts = [(*shared, (10 + i, n)) for i, n in enumerate(lengths)]
    actions: list[Action] = [Add(RequestSpec("shared", ((1, 2 * BLOCK), (9, 3)), 2)), Drain()]
    for index, prompt in enumerate(prompts):
        actions += [Add(RequestSpec(f"store{index}", prompt, tokens)), Drain()]
    actions.append(ForgetLocal())
    for index, prompt in enumerate(prompts):
        actions.append(Add(RequestSpec(f"reload{index}", prompt, tokens)))
    actions += [Step(2), PreemptAll(), Drain(), ForgetLocal()]
    actions += [Add(RequestSpec("tuned", ((1, 2 * BLOCK + 1),), 2, lora="adapter")), Drain()]
    if resets:
        actions += [ResetConnector(), Add(RequestSpec("after", prompts[0], 2)), Drain()]
    return Program(name, options, tuple(actions))


def _without_disturbance(program: Program) -> Program:
    disturbing = (PreemptAll, ResetConnector)
    return replace(program, actions=tuple(action for action in program.actions if not isinstance(action, disturbing)))


def _without_adapters(program: Program) -> Program:
    actions = (
        replace(action, request=replace(action.request, lora=None)) if isinstance(action, Add) else action
        for action in program.actions
    )
    return replace(program, actions=tuple(actions))


def varied() -> Family:
    """For statistics and events alike, so that both suites share its programs."""
    name = "statistics and events"
    examples = (
        _varied(name, (BLOCK + 1, 3 * BLOCK), BLOCK + 3, True, EngineOptions()),
        _varied(name, (2 * BLOCK + 5,), 2, False, EngineOptions(runner="v1", crossing="reference")),
    )
    drawn = st.builds(_varied, st.just(name), _LENGTHS, st.sampled_from([1, 4, BLOCK + 2]), st.booleans(), _OPTIONS)
    undisturbed = Family(name, "PRE-01", examples, drawn, "preemptions and resets", _without_disturbance)
    # What is wrong without an adapter as well is no matter of keys.
    return replace(
        undisturbed,
        rule="MATCH-17",
        situation="an adapter",
        control=_without_adapters,
        sort=if_wrong_bytes("MATCH-17"),
        general=undisturbed,
    )
