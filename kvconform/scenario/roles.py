"""Scenario families for the two roles: what each of them may know of the other, and of other engines."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family, store_then_reload
from kvconform.scenario.program import (
    Action,
    Add,
    Drain,
    DummyRun,
    ForgetLocal,
    Program,
    RepeatHandshake,
    RequestSpec,
    Step,
)

# Few, so that the tests that share a family share its programs, too; each with a block to load in it, because without
# a load a control program shows nothing.
_LENGTHS = st.sampled_from([[BLOCK + 1], [2 * BLOCK + 3], [1, 3 * BLOCK + 1, BLOCK], [5, 40], [20, 40, 33]])
_LONG = ((1, 3 * BLOCK + 1),)
_OTHER = ((2, 2 * BLOCK + 5),)


def _reload(name: str, lengths: list[int], options: EngineOptions) -> Program:
    return Program(name, options, tuple(store_then_reload([((i, n),) for i, n in enumerate(lengths)], 2)))


def _overlapping(name: str, options: EngineOptions, *between: Action) -> Program:
    """Two requests in flight at a time, stored and asked for again; ``between`` happens between their steps."""
    actions: list[Action] = []
    for kind in ("store", "reload"):
        actions += [
            Add(RequestSpec(f"{kind}0", _LONG, 4)), Step(1), *between,
            Add(RequestSpec(f"{kind}1", _OTHER, 6)), Step(2), *between, Drain(), *between, ForgetLocal(),
        ]  # fmt: skip
    return Program(name, options, tuple(actions))


def separate_objects() -> Family:
    """Roles that exchange pickled objects only; the control is the in-process executor, which hands them over."""
    options = [EngineOptions(runner=runner) for runner in RUNNERS]

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, crossing="reference"))

    name = "separate objects"
    examples = tuple(_overlapping(name, each) for each in options)
    drawn = st.builds(_reload, st.just(name), _LENGTHS, st.sampled_from(options))
    return Family(name, "ROLE-05", examples, drawn, "separate objects for each role", control)


def same_objects() -> Family:
    """The in-process executor, where the worker gets the scheduler's very objects; the control separates them."""
    separate, together = EngineOptions(crossing="pickle"), EngineOptions(crossing="reference")

    def control(program: Program) -> Program:
        return replace(program, options=separate)

    name = "same objects"
    drawn = st.builds(_reload, st.just(name), _LENGTHS, st.just(together))
    return Family(name, "ROLE-05", (_overlapping(name, together),), drawn, "the same objects in both roles", control)


def side_by_side() -> Family:
    """Two engines in one process with stores of their own and equal request ids.

    The control is one engine alone whose roles share objects, so that a fault of separate roles is told apart, too.
    """

    def twin(program: Program) -> Program:
        return replace(program, twin=True)

    def alone(program: Program) -> Program:
        return replace(program, twin=False, options=replace(program.options, crossing="reference"))

    name = "side by side"
    example = twin(_overlapping(name, EngineOptions()))
    drawn = st.builds(_reload, st.just(name), _LENGTHS, st.just(EngineOptions())).map(twin)
    return Family(name, "ROLE-05", (example,), drawn, "a second engine in the process and copies for each role", alone)


def dummy_runs() -> Family:
    """Forwards without the connector between the steps of running requests; the control has none."""

    def without(program: Program) -> Program:
        return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, DummyRun)))

    name = "dummy runs"
    examples = (_overlapping(name, EngineOptions(), DummyRun()),)
    drawn = st.builds(lambda lengths: _with_dummy_runs(_reload(name, lengths, EngineOptions())), _LENGTHS)
    return Family(name, "SIG-15", examples, drawn, "dummy runs", without)


def _with_dummy_runs(program: Program) -> Program:
    actions: list[Action] = []
    for action in program.actions:
        actions.append(action)
        if isinstance(action, Add):
            actions += [Step(1), DummyRun()]
    return replace(program, actions=tuple(actions))


def handshake_again() -> Family:
    """Handshake metadata collected and delivered a second time, as after a wake-up."""
    name = "handshake again"
    example = _overlapping(name, EngineOptions(), RepeatHandshake())
    return Family(name, "ROLE-16", (example,), st.just(example))
