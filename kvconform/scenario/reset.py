"""Scenario families for resets of the connector's cache, and for pauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import (
    Abort,
    Action,
    Add,
    Drain,
    ForgetLocal,
    Pause,
    Program,
    RequestSpec,
    ResetConnector,
    Resume,
    Step,
)

_OPTIONS = st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))
#: Whose a request is: nobody's, of an adapter, of a tenant. Each may have a part of the store to itself.
_WHOSE = (RequestSpec("plain", ()), RequestSpec("adapted", (), lora="tuned"), RequestSpec("tenant", (), salt="tenant"))


def _without_resets(program: Program) -> Program:
    """The local cache is dropped all the same, so that the requests afterwards ask for what they asked for."""
    actions = tuple(ForgetLocal() if isinstance(action, ResetConnector) else action for action in program.actions)
    return replace(program, actions=actions)


def _between(requests: Sequence[tuple[int, RequestSpec]], options: EngineOptions) -> Program:
    """Requests of these lengths, each of tokens of its own: whether keys tell them apart is the affair of others."""
    actions: list[Action] = []
    for name in ("store", "reload", "after", "again", "third", "fourth"):
        for index, (length, whose) in enumerate(requests):
            actions += [Add(replace(whose, id=f"{name}{index}", prompt=((index + 1, length),), max_tokens=2)), Drain()]
        actions.append(ForgetLocal())
        if name == "reload":
            actions.append(ResetConnector())
    return Program("reset", options, tuple(actions))


def between_steps() -> Family:
    """Stored, found, reset: not found any more; computed again: found again."""
    plain, *others = _WHOSE
    examples = (
        *(_between([(3 * BLOCK + 1, plain), (BLOCK + 5, plain)], EngineOptions(runner=runner)) for runner in RUNNERS),
        _between([(2 * BLOCK + 1, whose) for whose in others], EngineOptions()),
    )
    lengths = st.sampled_from([BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 1, 45])
    requests = st.lists(st.tuples(lengths, st.sampled_from(_WHOSE)), min_size=1, max_size=2)
    drawn = st.builds(_between, requests, _OPTIONS)
    return Family("reset", "RST-03", examples, drawn, "a reset of the connector", _without_resets)


def _amid(length: int, steps: Sequence[int], tokens: int, options: EngineOptions) -> Program:
    """Two loading requests and one that computes live through resets."""
    stored, fresh = ((1, length),), ((3, 2 * BLOCK + 3),)
    actions: list[Action] = [
        Add(RequestSpec("store", stored)), Add(RequestSpec("other", ((2, length + 4),))), Drain(), ForgetLocal(),
        Add(RequestSpec("loading", stored, tokens)), Add(RequestSpec("loading2", ((2, length + 4),), tokens)),
        Add(RequestSpec("computing", fresh, tokens)),
    ]  # fmt: skip
    for count in steps:
        actions += [Step(count), ResetConnector()] if count else [ResetConnector()]
    actions += [Drain(), ForgetLocal()]
    for name, prompt in (("after", stored), ("after2", fresh), ("again", stored)):
        actions += [Add(RequestSpec(name, prompt, 2)), Drain(), ForgetLocal()]
    return Program("reset amid traffic", options, tuple(actions))


def amid_traffic() -> Family:
    """A reset before a request is admitted, in the step after, while it decodes; and two with no step between them."""
    examples = (
        _amid(3 * BLOCK + 1, (1,), 4, EngineOptions()),
        _amid(2 * BLOCK + 1, (0, 1, 1), BLOCK + 4, EngineOptions(runner="v1")),
        _amid(BLOCK + 1, (1, 0), 2, EngineOptions()),
    )
    drawn = st.builds(
        _amid,
        st.sampled_from([BLOCK + 1, 3 * BLOCK]),
        st.lists(st.integers(0, 4), min_size=1, max_size=3),
        st.sampled_from([2, BLOCK + 3]),
        _OPTIONS,
    )
    return Family("reset amid traffic", "RST-03", examples, drawn, "a reset of the connector", _without_resets)


def _without_pauses(program: Program) -> Program:
    kept = tuple(action for action in program.actions if not isinstance(action, (Pause, Resume)))
    return replace(program, actions=kept)


def _paused(what: Literal["new", "all"], before: int, length: int, options: EngineOptions) -> Program:
    """Paused with requests waiting, loading and running, of which one is aborted in the pause.

    While everything is paused the engine takes a step only to tell of requests that ended (Scheduler.has_requests,
    0.32.0): one that schedules nothing, with others still running.
    """
    prompt = ((1, length),)
    actions: list[Action] = [
        Add(RequestSpec("store", prompt)), Drain(), ForgetLocal(),
        Add(RequestSpec("running", ((2, 2 * BLOCK + 1),), 8)), Step(2),
        Add(RequestSpec("reload", prompt, 3)), Add(RequestSpec("leaves", ((4, BLOCK + 2),), 8)),
        *([Step(before)] if before else []), Pause(what), Abort("leaves"), Step(3),
        Add(RequestSpec("late", ((3, BLOCK + 2),), 2)), Step(2), Resume(), Drain(),
        ForgetLocal(), Add(RequestSpec("again", prompt, 2)), Drain(),
    ]  # fmt: skip
    return Program("pause", options, tuple(actions))


def paused() -> Family:
    """Steps go on while nothing, or nothing new, is scheduled."""
    examples = (
        _paused("all", 1, 3 * BLOCK + 1, EngineOptions()),
        _paused("new", 0, 3 * BLOCK + 1, EngineOptions(runner="v1")),
    )
    drawn = st.builds(
        _paused, st.sampled_from(["new", "all"]), st.integers(0, 3), st.sampled_from([BLOCK + 1, 3 * BLOCK]), _OPTIONS
    )
    return Family("pause", "RST-05", examples, drawn, "a pause", _without_pauses)
