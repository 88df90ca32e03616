"""Scenario families for loads that take longer than a step: several at once, aborted ones, ids that are used again.

How long a transfer takes is the connector's affair, so each family tries several moments. A connector whose loads
are done within their step passes through the same states with nothing under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions, Runner
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    AbortOnArrival,
    AbortOnceLoading,
    Action,
    Add,
    Drain,
    ForgetLocal,
    PreemptAll,
    Program,
    RequestSpec,
    Step,
)

Prompt = tuple[tuple[int, int], ...]

LONG: Prompt = ((1, 3 * BLOCK + 1),)
OTHER: Prompt = ((2, 2 * BLOCK + 5),)


def stored(*prompts: Prompt) -> list[Action]:
    """Compute the prompts and drop them from the local cache."""
    adds = [Add(RequestSpec(f"store{index}", prompt)) for index, prompt in enumerate(prompts)]
    return [*adds, Drain(), ForgetLocal()]


def _options() -> st.SearchStrategy[EngineOptions]:
    return st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))


# -- several loads at once --


def _together(prompts: Sequence[Prompt], copies: int, options: EngineOptions) -> Program:
    adds: list[Action] = [
        Add(RequestSpec(f"reload{index}.{copy}", prompt, 2))
        for index, prompt in enumerate(prompts)
        for copy in range(copies)
    ]
    return Program("loads at once", options, (*stored(*prompts), *adds, Drain()))


def _one_by_one(program: Program) -> Program:
    actions: list[Action] = []
    for action in program.actions:
        actions.append(action)
        if isinstance(action, Add) and action.request.id.startswith("reload"):
            actions += [Drain(), ForgetLocal()]
    return replace(program, actions=tuple(actions))


def loads_at_once() -> Family:
    """Several loads of the same prompt, and of another one, in the same step."""
    examples = (
        _together((LONG, OTHER), 2, EngineOptions()),
        _together((((1, 1),), ((2, BLOCK + 1),), LONG), 1, EngineOptions(runner="v1")),
    )
    lengths = st.integers(1, 4 * BLOCK)
    prompts = st.lists(lengths, min_size=1, max_size=3).map(lambda ns: [((i, n),) for i, n in enumerate(ns, 1)])
    drawn = st.builds(_together, prompts, st.integers(1, 3), _options())
    return Family("loads at once", "ASYNC-13", examples, drawn, "other loads under way", _one_by_one)


# -- aborts --


#: When a request is aborted that is to be loaded: after so many steps, in the next one before its results are taken, or
#: in the one that promises its load, whenever that comes.
_Moment = int | Literal["next step", "once loading"]


def _leaves(request: str, moment: _Moment) -> list[Action]:
    match moment:
        case "next step":
            return [AbortDuringStep(request)]
        case "once loading":
            return [AbortOnceLoading(request)]
        case steps:
            return [Step(steps), Abort(request)]


def _aborted(moment: _Moment, prompt: Prompt, options: EngineOptions) -> Program:
    """A reload is aborted; others take its blocks, and the prompt is reloaded once more.

    However fast a load is, it has not arrived for the scheduler where the abort comes in before the results of the
    step that promised it (EngineCore.step).
    """
    actions: list[Action] = [
        *stored(prompt, OTHER),
        Add(RequestSpec("reload", prompt, 4)), Add(RequestSpec("beside", OTHER, 6)), *_leaves("reload", moment),
        # As many blocks as there are: the aborted request's are among them as soon as they are free.
        Add(RequestSpec("taker", ((3, 5 * BLOCK + 3),), 3)), Step(2),
        Add(RequestSpec("taker2", ((4, 5 * BLOCK + 3),), 3)), Drain(),
        ForgetLocal(), Add(RequestSpec("again", prompt, 2)), Drain(),
    ]  # fmt: skip
    tight = replace(options, shape=replace(options.shape, num_blocks=13))
    return Program("aborted loads", tight, tuple(actions))


def _without_aborts(program: Program) -> Program:
    aborts = (Abort, AbortDuringStep, AbortOnceLoading, AbortOnArrival)
    return replace(program, actions=tuple(action for action in program.actions if not isinstance(action, aborts)))


def aborted_loads() -> Family:
    """A request that is aborted before, while and after its KV is loaded."""
    moments: tuple[tuple[_Moment, Runner], ...] = (
        (1, "v2"), (2, "v1"), (3, "v2"), ("once loading", "v2"), ("once loading", "v1"),
    )  # fmt: skip
    examples = tuple(_aborted(moment, LONG, EngineOptions(runner=runner)) for moment, runner in moments)
    prompts = st.integers(BLOCK, 4 * BLOCK).map(lambda n: ((1, n),))
    moment = st.one_of(st.integers(1, 8), st.sampled_from(("next step", "once loading")))
    drawn = st.builds(_aborted, moment, prompts, _options())
    return Family("aborted loads", "ASYNC-09", examples, drawn, "aborts", _without_aborts)


def _as_they_arrive(moments: Sequence[int | None], prompt: Prompt, options: EngineOptions) -> Program:
    """Reloads, each aborted in some step after the workers have run it; None: in the one that reports its load."""
    actions = stored(prompt)
    for index, steps in enumerate(moments):
        reload = RequestSpec(f"reload{index}", prompt, 4)
        if steps is None:
            actions += [AbortOnArrival(reload.id), Add(reload), Drain(), ForgetLocal()]
        else:
            actions += [Add(reload), Step(steps), AbortDuringStep(reload.id), Drain(), ForgetLocal()]
    return Program("aborted as they arrive", options, tuple(actions))


def aborted_as_they_arrive() -> Family:
    """The report of a load is in the results of the very step in which its request is aborted."""
    moments = (None, 1, 0, 2, 1, 3, 1)
    examples = tuple(_as_they_arrive(moments, LONG, EngineOptions(runner=runner)) for runner in RUNNERS)
    prompts = st.integers(BLOCK + 1, 4 * BLOCK).map(lambda n: ((1, n),))
    moment = st.one_of(st.none(), st.integers(0, 5))
    drawn = st.builds(_as_they_arrive, st.lists(moment, min_size=1, max_size=4), prompts, _options())
    return Family("aborted as they arrive", "ORDER-15", examples, drawn, "aborts as loads arrive", _without_aborts)


# -- ids that are used again --


def _again(steps: int, first: Prompt, second: Prompt, options: EngineOptions) -> Program:
    """An id that was loaded, and aborted or done, is given to a request of another prompt."""
    actions: list[Action] = [
        *stored(first, second),
        Add(RequestSpec("r", first, 3)), Step(steps), Abort("r"), Drain(), ForgetLocal(),
        Add(RequestSpec("r", second, 3)), Drain(), ForgetLocal(), Add(RequestSpec("r", first, 3)), Drain(),
    ]  # fmt: skip
    return Program("ids used again", options, tuple(actions))


def _fresh_ids(program: Program) -> Program:
    actions: list[Action] = []
    lives = 0
    for action in program.actions:
        if isinstance(action, Add) and action.request.id == "r":
            lives += 1
            actions.append(Add(replace(action.request, id=f"r{lives}")))
        else:
            actions.append(Abort(f"r{lives}") if isinstance(action, Abort) else action)
    return replace(program, actions=tuple(actions))


def ids_used_again() -> Family:
    """The same request id several times, as clients that choose their own ids may do."""
    examples = (
        _again(1, LONG, OTHER, EngineOptions()),
        _again(2, OTHER, LONG, EngineOptions(runner="v1")),
        _again(9, LONG, OTHER, EngineOptions()),
    )
    drawn = st.builds(
        _again,
        st.integers(1, 9),
        st.integers(1, 4 * BLOCK).map(lambda n: ((1, n),)),
        st.integers(1, 4 * BLOCK).map(lambda n: ((2, n),)),
        _options(),
    )
    return Family("ids used again", "ASYNC-22", examples, drawn, "using an id again", _fresh_ids)


# -- preempted, then loaded --


def _preempted(steps: int, lengths: Sequence[int], options: EngineOptions) -> Program:
    """Requests that compute are all preempted, and find what they had computed in the store."""
    adds: list[Action] = [Add(RequestSpec(f"r{i}", ((10 + i, n),), 12)) for i, n in enumerate(lengths)]
    again: list[Action] = [Add(RequestSpec(f"again{i}", ((10 + i, n),), 2)) for i, n in enumerate(lengths)]
    actions: list[Action] = [*adds, Step(steps), PreemptAll(), Step(2), PreemptAll(), Drain(), ForgetLocal(), *again]
    return Program("all preempted", options, (*actions, Drain()))


def _not_preempted(program: Program) -> Program:
    return replace(program, actions=tuple(action for action in program.actions if not isinstance(action, PreemptAll)))


def all_preempted() -> Family:
    """All running requests are preempted between two steps, twice, and resumed on what was saved of them."""
    lengths = (3 * BLOCK + 1, 2 * BLOCK, BLOCK + 7)
    examples = (
        _preempted(1, lengths, EngineOptions()),
        _preempted(3, lengths, EngineOptions(runner="v1")),
        _preempted(9, lengths, EngineOptions()),
    )
    drawn = st.builds(
        _preempted, st.integers(1, 12), st.lists(st.integers(1, 4 * BLOCK), min_size=2, max_size=4), _options()
    )
    return Family("all preempted", "PRE-08", examples, drawn, "preempting everything", _not_preempted)
