"""Scenario families for the end of an engine: twice, amid transfers, and by a kill."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.shutdown import in_flight_rule, killed_rule, twice_rule
from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import Action, Add, Drain, ForgetLocal, Kill, Program, RequestSpec, Restart, Step

_OPTIONS = st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))
_LENGTHS = st.sampled_from([BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 1])
_FIRST, _SECOND = ((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK + 3),)


def _orderly(program: Program) -> Program:
    """An idle engine that is shut down once instead."""
    changed = tuple(Restart() if isinstance(action, (Restart, Kill)) else action for action in program.actions)
    return replace(program, actions=changed)


def _twice(length: int, options: EngineOptions) -> Program:
    prompt = ((1, length),)
    actions: list[Action] = [
        Add(RequestSpec("store", prompt, 2)), Drain(), Restart(twice=True),
        Add(RequestSpec("reload", prompt, 2)), Drain(), ForgetLocal(), Add(RequestSpec("again", prompt)), Drain(),
    ]  # fmt: skip
    return Program("shutdown twice", options, tuple(actions))


def twice() -> Family:
    """Both roles are shut down again by an error path; a new engine on the same store works."""
    examples = (_twice(3 * BLOCK + 1, EngineOptions()),)
    drawn = st.builds(_twice, _LENGTHS, _OPTIONS)
    return Family("shutdown twice", "SHUT-06", examples, drawn, "a second shutdown", _orderly, sort=twice_rule)


def _busy(name: str, steps: int, tokens: int, end: Action, options: EngineOptions) -> Program:
    """Ends while one request loads or decodes and another one is computed and saved."""
    actions: list[Action] = [
        Add(RequestSpec("store", _FIRST, 2)), Drain(), ForgetLocal(),
        Add(RequestSpec("reload", _FIRST, tokens)), Add(RequestSpec("fresh", _SECOND, tokens)),
        *([Step(steps)] if steps else []), end,
    ]  # fmt: skip
    for request, prompt in (("first", _FIRST), ("second", _SECOND), ("first-again", _FIRST), ("second-again", _SECOND)):
        actions += [Add(RequestSpec(request, prompt, 2)), Drain(), ForgetLocal()]
    return Program(name, options, tuple(actions))


def in_flight() -> Family:
    """Shut down with requests waiting, loading, saving and decoding; a new engine on the same store works."""
    name, end = "shutdown in flight", Restart(drain=False)
    examples = (_busy(name, 1, 6, end, EngineOptions()), _busy(name, 3, 2 * BLOCK, end, EngineOptions(runner="v1")))
    drawn = st.builds(_busy, st.just(name), st.integers(0, 5), st.sampled_from([2, 2 * BLOCK]), st.just(end), _OPTIONS)
    situation = "a shutdown amid requests"
    return Family(name, "SHUT-02", examples, drawn, situation, _orderly, sort=in_flight_rule)


def killed() -> Family:
    """Killed with requests loading, saving and decoding; a new engine on the same store works."""
    name = "kill"
    examples = (_busy(name, 1, 6, Kill(), EngineOptions()), _busy(name, 3, 2 * BLOCK, Kill(), EngineOptions()))
    drawn = st.builds(
        _busy, st.just(name), st.integers(0, 5), st.sampled_from([2, 2 * BLOCK]), st.just(Kill()), _OPTIONS
    )
    return Family(name, "SHUT-03", examples, drawn, "a kill, with a shutdown instead,", _orderly, sort=killed_rule)
