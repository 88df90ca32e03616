"""Scenario families for saves: preempted under way, repeated, looked for before they are done, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import Action, Add, Drain, ForgetLocal, Program, RequestSpec, Step


def _options() -> st.SearchStrategy[EngineOptions]:
    return st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))


# -- preempted --


def _pressed(first: int, second: int, tokens: int, options: EngineOptions) -> Program:
    """Two requests fill the pool with their prompts, and outgrow it with the first tokens that they generate.

    The second one loses blocks that it has just completed, all of them prompt, to the first.
    """
    tight = replace(options, shape=replace(options.shape, num_blocks=7))
    actions: list[Action] = [
        Add(RequestSpec("a", ((1, first),), tokens)), Add(RequestSpec("b", ((2, second),), tokens)), Drain(),
        ForgetLocal(), Add(RequestSpec("again", ((2, second), (9, 5)), 2)), Drain(),
    ]  # fmt: skip
    return Program("preempted saves", tight, tuple(actions))


def _roomy(program: Program) -> Program:
    return replace(program, options=replace(program.options, shape=replace(program.options.shape, num_blocks=64)))


def preempted_saves() -> Family:
    """Blocks that are being saved are given to another running request within one schedule()."""
    full = 3 * BLOCK
    examples = (
        _pressed(full, full, 8, EngineOptions()),
        _pressed(full, full, 8, EngineOptions(runner="v1")),
        _pressed(full, full - 1, 8, EngineOptions()),
    )
    drawn = st.builds(
        _pressed, st.integers(full - 4, full), st.integers(full - 4, full), st.integers(6, 20), _options()
    )
    return Family("preempted saves", "PRE-02", examples, drawn, "preemption", _roomy)


# -- the same prefix again --


def _twice(length: int, tails: Sequence[int], options: EngineOptions) -> Program:
    """A prefix is computed and stored anew by requests that may not read any cache."""
    actions: list[Action] = [Add(RequestSpec("store", ((1, length),))), Drain()]
    for index, tail in enumerate(tails):
        prompt = ((1, length), (5 + index, tail)) if tail else ((1, length),)
        actions += [Add(RequestSpec(f"more{index}", prompt, 2, skip_reading_prefix_cache=True))]
    actions += [Drain(), ForgetLocal()]
    for index, tail in enumerate(tails):
        prompt = ((1, length), (5 + index, tail)) if tail else ((1, length), (40, 1))
        actions += [Add(RequestSpec(f"reload{index}", prompt, 2)), Drain(), ForgetLocal()]
    return Program("stored again", options, tuple(actions))


def _once(program: Program) -> Program:
    kept = [
        action for action in program.actions if not (isinstance(action, Add) and action.request.id.startswith("more"))
    ]
    return replace(program, actions=tuple(kept))


def stored_again() -> Family:
    """The same prefix stored by several requests, one after the other and at once."""
    examples = (
        _twice(3 * BLOCK, (0, 0, 7), EngineOptions()),
        _twice(2 * BLOCK + 5, (BLOCK, 0, 3 * BLOCK), EngineOptions(runner="v1")),
    )
    drawn = st.builds(
        _twice, st.integers(1, 4 * BLOCK), st.lists(st.integers(0, 2 * BLOCK), min_size=1, max_size=3), _options()
    )
    return Family("stored again", "SAVE-06", examples, drawn, "storing it again", _once)


# -- looked for at once --


def _at_once(lengths: Sequence[int], pause: int, options: EngineOptions) -> Program:
    """A prompt is asked for in a step in which its first computation may still be on its way to the store."""
    actions: list[Action] = []
    for index, length in enumerate(lengths):
        prompt = ((1 + index, length),)
        # One lookup each: two loads of one prefix at a time are another matter.
        actions += [Add(RequestSpec(f"store{index}", prompt, 2)), Step(pause)]
        actions += [Add(RequestSpec(f"reload{index}", prompt, 2)), Drain()]
        actions += [Add(RequestSpec(f"later{index}", prompt, 2)), Drain()]
    # Room enough that no block is handed on.
    roomy = replace(options, enable_prefix_caching=False, shape=replace(options.shape, num_blocks=128))
    return Program("looked for at once", roomy, tuple(actions))


def _later(program: Program) -> Program:
    actions = tuple(Drain() if isinstance(action, Step) else action for action in program.actions)
    return replace(program, actions=actions)


def looked_for_at_once() -> Family:
    """Lookups while a save is under way, in chunks and in one piece, without a local prefix cache."""
    lengths = (3 * BLOCK + 1, 2 * BLOCK)
    examples = (
        _at_once(lengths, 1, EngineOptions()),
        # By then the request has ended, and its save need not have.
        _at_once(lengths, 3, EngineOptions()),
        _at_once(lengths, 2, EngineOptions(runner="v1", max_num_batched_tokens=24)),
    )
    drawn = st.builds(
        _at_once, st.lists(st.integers(BLOCK, 4 * BLOCK), min_size=1, max_size=2), st.integers(1, 4), _options()
    )
    return Family("looked for at once", "SAVE-08", examples, drawn, "looking before the save is done", _later)
