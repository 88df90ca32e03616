"""Transfers between two engines that are under way at once, aborted, started over, or fail.

As :mod:`kvconform.scenario.hand_off_situations`: each takes the family that puts a store into the situation, and keeps
its rule and its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvconform.checks.failures import without_peer_rule
from kvconform.checks.model import Finding
from kvconform.engine.events import Outlasted
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions, Place
from kvconform.scenario import asynchronous, composition, failures
from kvconform.scenario.failures import Policy
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt
from kvconform.scenario.hand_offs import as_hand_off, hand_over, options_of, paired, prefill
from kvconform.scenario.producer_consumer import present
from kvconform.scenario.program import (
    Abort,
    AbortOnArrival,
    Action,
    Add,
    Drain,
    FinishRequests,
    ForgetLocal,
    HandOff,
    Leave,
    Outlast,
    Program,
    RequestSpec,
    Step,
    Turn,
)

_LONG: Prompt = ((1, 3 * BLOCK + 1),)
_OTHER: Prompt = ((2, 2 * BLOCK + 5),)


# -- several loads at once --


def _one_by_one(program: Program) -> Program:
    """The consumer is idle, and has forgotten everything, before it gets the next request."""
    actions: list[Action] = []
    for action in program.actions:
        actions += [action, Drain(), ForgetLocal()] if isinstance(action, HandOff) else [action]
    return replace(program, actions=tuple(actions))


def loads_at_once() -> Family:
    """The same prompt several times, and others, all handed off to one consumer in the same step."""
    together = ((_LONG, _LONG, _OTHER, _LONG), (((1, 1),), ((2, BLOCK + 1),), _LONG, _LONG))
    examples = [
        paired("loads at once", hand_over(prompts), options_of(runner))
        for prompts, runner in zip(together, RUNNERS, strict=True)
    ]
    return as_hand_off(replace(asynchronous.loads_at_once(), control=_one_by_one), examples)


# -- aborts --


def _as_they_arrive(lengths: Sequence[int], options: EngineOptions) -> Program:
    """Hand-offs of which all but the last are aborted as they arrive, each beside the next one."""
    *actions, drain = hand_over([((i, n),) for i, n in enumerate(lengths, 1)], 4)
    aborted = [AbortOnArrival(f"decode{i}") for i in range(len(lengths) - 1)]
    at = next(index for index, action in enumerate(actions) if isinstance(action, HandOff))
    return paired("aborted as they arrive", [*actions[:at], *aborted, *actions[at:], drain], options)


def _without_aborts(program: Program) -> Program:
    return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, AbortOnArrival)))


def aborted_as_they_arrive() -> Family:
    """The report of a load is in the results of the very step in which its request is aborted."""
    examples = [_as_they_arrive((3 * BLOCK + 1, 2 * BLOCK, 40), options_of(runner)) for runner in RUNNERS]
    return as_hand_off(replace(asynchronous.aborted_as_they_arrive(), control=_without_aborts), examples)


# -- ids that are used again --


def _again(steps: int, first: Prompt, second: Prompt, options: EngineOptions) -> Program:
    """One id on either side, for two hand-offs; the consumer's first one is aborted after some steps, 0 for not."""
    actions: list[Action] = []
    for life, prompt in enumerate((first, second)):
        # What the producer holds of the life before ends by then, or there is no other life.
        actions += [Turn("producer"), Outlast()] if life else []
        actions += [prefill("p", prompt), FinishRequests(), Turn("consumer"), HandOff(RequestSpec("d", prompt, 3), "p")]
        actions += [Step(steps), Abort("d")] if steps and not life else []
        actions += [Drain(), ForgetLocal()]
    return paired("ids used again", actions, options)


def _fresh_ids(program: Program) -> Program:
    actions: list[Action] = []
    life = 0
    for action in program.actions:
        if isinstance(action, Add):
            life += 1
            action = replace(action, request=replace(action.request, id=f"p{life}"))
        elif isinstance(action, HandOff):
            action = replace(action, request=replace(action.request, id=f"d{life}"), of=f"p{life}")
        elif isinstance(action, Abort):
            action = Abort(f"d{life}")
        actions.append(action)
    return replace(program, actions=tuple(actions))


def ids_used_again() -> Family:
    """The ids of a hand-off, aborted or done, belong to the next one: clients may choose their own."""
    examples = (_again(1, _LONG, _OTHER, options_of("v2")), _again(0, _OTHER, _LONG, options_of("v1")))
    return as_hand_off(replace(asynchronous.ids_used_again(), control=_fresh_ids), examples)


# -- loads that fail --


def _failed(lengths: Sequence[int], options: EngineOptions) -> Program:
    """The producer is gone when its prompts are asked for; the first of them comes once more, on the consumer alone."""
    prompts: list[Prompt] = [((i, n),) for i, n in enumerate(lengths, 1)]
    *first, done, turn, second, third, _ = hand_over(prompts, 2)
    actions = [*first, done, Leave(), turn, second, third, Outlast(), Add(RequestSpec("again", prompts[0], 2)), Drain()]
    return paired("failed hand-off", actions, options)


def _sorted_at_the_end(family: Family) -> Family:
    """``family``, with what has no end without its producer sorted by its reason."""

    def sort(history: History, finding: Finding) -> str:
        if isinstance(finding.at, Outlasted):
            return without_peer_rule(history, finding.at)
        return finding.rule if family.sort is None else family.sort(history, finding)

    return replace(family, sort=sort)


def failed_loads(policy: Policy) -> Family:
    """Loads from a producer that has left, under one policy for failed loads."""
    family = failures.failed_loads(policy)
    assert family.general is not None
    both = replace(_sorted_at_the_end(family.general), situation="the producer's end", control=present)
    options = [EngineOptions(runner=runner, load_failure_policy=policy) for runner in RUNNERS]
    examples = [_failed((3 * BLOCK + 1, 2 * BLOCK), each) for each in options]
    return as_hand_off(replace(_sorted_at_the_end(family), general=both), examples)


# -- a sibling that loads --


def beside_a_store(place: Place) -> Family:
    """Below MultiConnector with a store, from which the consumer has the prompt as well: whoever is first loads it."""
    prompts = (_LONG, _OTHER)
    before: list[Action] = [Add(RequestSpec(f"before{i}", prompt)) for i, prompt in enumerate(prompts)]
    actions = [Turn("consumer"), *before, Drain(), ForgetLocal(), Turn("producer"), *hand_over(prompts)]
    options = [EngineOptions(runner=runner, place=place, sibling="store") for runner in RUNNERS]
    return as_hand_off(composition.reload(place), [paired("beside a store", actions, each) for each in options])
