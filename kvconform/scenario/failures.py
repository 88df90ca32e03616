"""Scenario families for loads and saves that fail because the connector's store was broken from outside.

What a legal connector does with a broken store: it no longer matches the data, or it promises a load, notices that it
fails, and reports the blocks or the request. What it must not do is to raise, to hang, or to let wrong bytes pass for
loaded ones. Bytes that were changed without changing the length of a file are not tried: no contract demands checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from hypothesis import strategies as st

from kvconform.checks.failures import broken_rule, failed_rule, recomputed_rule, refused_rule
from kvconform.checks.model import Finding
from kvconform.engine.events import NeverIdle
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family, store_then_reload
from kvconform.scenario.program import (
    Action,
    Add,
    BreakStore,
    Drain,
    ForgetLocal,
    MendStore,
    Program,
    RefuseWrites,
    RequestSpec,
    StoreFault,
)

Policy = Literal["recompute", "fail"]
FAULTS: tuple[StoreFault, ...] = ("removed", "truncated", "emptied", "folders", "unreadable")
NAME = "broken store"


def _broken(length: int, faults: Sequence[BreakStore], max_tokens: int, options: EngineOptions) -> Program:
    """A stored prompt is asked for as the beginning of a longer one, breaks on its way, and is asked for twice more."""
    prompt = ((1, length), (2, BLOCK + 5))
    actions: list[Action] = [Add(RequestSpec("store", ((1, length),))), Drain(), ForgetLocal(), *faults]
    for name in ("reload", "again", "later"):
        actions += [Add(RequestSpec(name, prompt, max_tokens)), Drain(), ForgetLocal()]
    return Program(NAME, options, tuple(actions))


def _without_faults(program: Program) -> Program:
    faults = (BreakStore, RefuseWrites, MendStore)
    return replace(program, actions=tuple(action for action in program.actions if not isinstance(action, faults)))


def _with_policy(policy: Policy) -> st.SearchStrategy[EngineOptions]:
    return st.builds(lambda runner: EngineOptions(runner=runner, load_failure_policy=policy), st.sampled_from(RUNNERS))


def _faults() -> st.SearchStrategy[list[BreakStore]]:
    return st.lists(
        st.builds(BreakStore, st.sampled_from(FAULTS), st.sampled_from([1, 2, 3]), st.booleans()),
        min_size=1,
        max_size=1,
    )


def _examples(policy: Policy) -> tuple[Program, ...]:
    """The store breaks between promise and load, as a whole and in part; and before the promise."""
    length = 3 * BLOCK + 1
    faults = [BreakStore("removed", at_load=True), BreakStore("truncated", 2, at_load=True), BreakStore("removed", 2)]
    runners = (*RUNNERS, RUNNERS[0])
    return tuple(
        _broken(length, [fault], 2, EngineOptions(runner=runner, load_failure_policy=policy))
        for fault, runner in zip(faults, runners, strict=True)
    )


def _drawn(policy: Policy) -> st.SearchStrategy[Program]:
    lengths = st.sampled_from([BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 1, 4 * BLOCK + 5])
    return st.builds(_broken, lengths, _faults(), st.integers(1, 3), _with_policy(policy))


def failed_loads(policy: Policy) -> Family:
    """A stored prompt whose load fails under one policy."""
    return _under(policy, NAME, _examples(policy), _drawn(policy))


def _under(policy: Policy, name: str, examples: tuple[Program, ...], drawn: st.SearchStrategy[Program]) -> Family:
    """What is wrong under this policy only is told from what is wrong under both, by a run with the other one."""
    other: Policy = "fail" if policy == "recompute" else "recompute"

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, load_failure_policy=other))

    rule, sort = ("FAIL-11", recomputed_rule) if policy == "recompute" else ("FAIL-06", failed_rule)
    both = Family(name, "FAIL-20", examples, drawn, "a broken store", _without_faults, sort=broken_rule)
    situation = f"the policy {policy} for failed loads, with {other} instead,"
    return Family(name, rule, examples, drawn, situation, control, sort=sort, general=both)


def _behind_local(prefix: int, rest: int, fault: BreakStore, options: EngineOptions) -> Program:
    """The load that fails comes on top of a local hit, which is no part of it."""
    long = ((1, prefix), (2, rest))
    actions: list[Action] = [
        Add(RequestSpec("store", long)), Drain(), ForgetLocal(),
        # Brings the prefix back into the local cache; its own tail keeps it from being a hit for the whole.
        Add(RequestSpec("prefix", ((1, prefix), (3, 5)))), Drain(),
        fault, Add(RequestSpec("reload", long, 2)), Drain(), Add(RequestSpec("local", long, 2)), Drain(),
    ]  # fmt: skip
    return Program("broken store behind a local hit", options, tuple(actions))


def behind_local_hits() -> Family:
    """A load behind a local hit fails: the local blocks are good and must not be reported with the others."""
    fault = BreakStore("removed", at_load=True)
    examples = (
        _behind_local(2 * BLOCK, 2 * BLOCK + 1, fault, EngineOptions()),
        _behind_local(BLOCK, BLOCK + 3, fault, EngineOptions(runner="v1")),
    )
    drawn = st.builds(
        _behind_local,
        st.sampled_from([BLOCK, 2 * BLOCK, 2 * BLOCK + 3]),
        st.sampled_from([BLOCK + 2, 2 * BLOCK + 3, 3 * BLOCK]),
        st.builds(BreakStore, st.sampled_from(FAULTS), st.sampled_from([1, 2]), st.just(True)),
        _with_policy("recompute"),
    )
    return _under("recompute", "broken store behind a local hit", examples, drawn)


def _silent(length: int, at_load: bool, options: EngineOptions) -> Program:
    """A prompt that was found once is asked for while its store does not answer, and again when it does."""
    prompt = ((1, length),)
    actions: list[Action] = [
        Add(RequestSpec("store", prompt)), Drain(), ForgetLocal(),
        Add(RequestSpec("found", prompt)), Drain(), ForgetLocal(),
        BreakStore("silent", at_load=at_load),
        Add(RequestSpec("asked", prompt, 2)), Add(RequestSpec("beside", ((9, BLOCK + 5),), 2)), Drain(),
        MendStore(), ForgetLocal(), Add(RequestSpec("again", prompt, 2)), Drain(),
    ]  # fmt: skip
    return Program("silent store", options, tuple(actions))


def _silent_rule(_: History, finding: Finding) -> str:
    return "LIVE-05" if isinstance(finding.at, NeverIdle) else "FAIL-20"


def silent_store() -> Family:
    """A store that does not answer, from before the query on or from the promise of a load on; later it does."""
    length = 3 * BLOCK + 1
    examples = (
        _silent(length, True, EngineOptions()),
        _silent(length, False, EngineOptions(runner="v1")),
        _silent(length, True, EngineOptions(load_failure_policy="fail")),
    )
    drawn = st.builds(
        _silent, st.sampled_from([BLOCK + 1, 3 * BLOCK, 4 * BLOCK + 5]), st.booleans(), _with_policy("recompute")
    )
    return Family(
        "silent store",
        "LIVE-05",
        examples,
        drawn,
        "a store that does not answer",
        _without_faults,
        sort=_silent_rule,
        keeps=frozenset({"LOAD-03"}),
        alike=frozenset({"ASYNC-01", "LIVE-02"}),
    )


def _refused(how: Literal["full", "no folder"], lengths: Sequence[int], options: EngineOptions) -> Program:
    """Some prompts are stored while nothing can be written; afterwards all of them are asked for, twice."""
    prompts = [((10 + i, n),) for i, n in enumerate(lengths)]
    actions: list[Action] = [Add(RequestSpec("early", ((1, 2 * BLOCK + 1),))), Drain(), RefuseWrites(how)]
    for index, prompt in enumerate(prompts):
        actions += [Add(RequestSpec(f"refused{index}", prompt, 2)), Drain()]
    actions += [MendStore(), ForgetLocal(), *store_then_reload([((1, 2 * BLOCK + 1),), *prompts], 2)]
    return Program("refused saves", options, tuple(actions))


def refused_saves() -> Family:
    """Saves that fail, half-way or at once; later everything can be stored again."""
    long = (2 * BLOCK + 1, 3 * BLOCK)
    examples = (
        _refused("full", long, EngineOptions()),
        _refused("no folder", long, EngineOptions(runner="v1")),
    )
    drawn = st.builds(
        _refused,
        st.sampled_from(["full", "no folder"]),
        st.lists(st.sampled_from([5, BLOCK, 2 * BLOCK + 1, 4 * BLOCK]), min_size=1, max_size=2),
        _with_policy("recompute"),
    )
    situation = "a store that can't be written"
    return Family("refused saves", "FAIL-16", examples, drawn, situation, _without_faults, sort=refused_rule)
