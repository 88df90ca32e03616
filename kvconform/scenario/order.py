"""Scenario families for the order of calls and for the metadata of a step: where the engine does what few expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.engine.options import EngineOptions, HookOrder, Runner
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario import transfer
from kvconform.scenario.family import BLOCK, RUNNERS, Family, store_then_reload
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    Action,
    Add,
    Drain,
    FailForward,
    ForgetLocal,
    Program,
    RequestSpec,
    Step,
)

_LONG = ((1, 3 * BLOCK + 1),)
_OTHER = ((2, 2 * BLOCK + 5),)


def _drawn(*programs: Program) -> st.SearchStrategy[Program]:
    """No more than these: the situation is in the engine's order of calls, not in the requests."""
    return st.sampled_from(programs)


def _reloads(*runners: Runner) -> tuple[Program, ...]:
    """The programs of the plain round trip, which every other test shares."""
    return tuple(program for program in transfer.reload().examples if program.options.runner in runners)


def _in_order(order: HookOrder) -> Callable[[Program], Program]:
    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, hook_order=order))

    return control


def _on(runner: Runner) -> Callable[[Program], Program]:
    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, runner=runner))

    return control


def plain(rule: str) -> Family:
    """The plain round trip on both runners, for rules whose checks need no more than that."""
    programs = _reloads(*RUNNERS)
    return Family("reload", rule, programs, _drawn(*programs))


def model_runner(runner: Runner, rule: str) -> Family:
    """The plain round trip in one runner's order of calls; the control is the other's."""
    programs = _reloads(runner)
    other: Runner = "v2" if runner == "v1" else "v1"
    situation = f"model runner {runner.upper()}'s order of calls"
    return Family("reload", rule, programs, _drawn(*programs), situation, _on(other))


def loads_after_the_forward() -> Family:
    """Steps that start their loads after the forward; in the control every step starts them before it."""
    programs = _reloads(*RUNNERS)
    situation = "layer hooks before start_load_kv"
    return Family("reload", "ORDER-08", programs, _drawn(*programs), situation, _in_order("loads first"))


def preemptions_before_binding() -> Family:
    """handle_preemptions before the step's metadata is bound; in the control it is bound already."""
    programs = _reloads(*RUNNERS)
    situation = "handle_preemptions before the metadata is bound"
    return Family("reload", "ORDER-11", programs, _drawn(*programs), situation, _in_order("bound first"))


def graphs_without_attention_metadata() -> Family:
    """Full CUDA graphs, where start_load_kv finds no attention metadata and no layer hook follows."""
    return replace(transfer.full_graph(), rule="ORDER-26")


def never_cleared() -> Family:
    """Steps that end without clear_connector_metadata."""
    programs = tuple(_in_order("never cleared")(program) for program in _reloads(*RUNNERS))
    situation = "metadata that is still bound when the next is"
    return Family("reload", "ORDER-27", programs, _drawn(*programs), situation, _in_order("vllm"))


def _asked_again(name: str, options: EngineOptions) -> Program:
    actions: tuple[Action, ...] = (
        Add(RequestSpec("store", _LONG)), Drain(), ForgetLocal(),
        # Takes all blocks but two for a while.
        Add(RequestSpec("hog", ((5, 5 * BLOCK),), 20)), Step(2),
        Add(RequestSpec("reload", _LONG)), Add(RequestSpec("given up", _LONG)), Step(4), Abort("given up"), Drain(),
        ForgetLocal(), Add(RequestSpec("again", _LONG)), Drain(),
    )  # fmt: skip
    return Program(name, options, actions)


def asked_again() -> Family:
    """A match that is asked in every step for want of blocks, and at last never followed by an allocation."""
    programs = tuple(
        _asked_again("asked again", EngineOptions(KVCacheShape(num_blocks=9), runner=runner)) for runner in RUNNERS
    )

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, shape=KVCacheShape(num_blocks=64)))

    situation = "a match that is asked again and again before the allocation"
    return Family("asked again", "ORDER-03", programs, _drawn(*programs), situation, control)


def _aborted(name: str, options: EngineOptions) -> Program:
    actions: tuple[Action, ...] = (
        Add(RequestSpec("ended", _OTHER, 8)), Step(2), Abort("ended"), Drain(),
        Add(RequestSpec("store", _LONG, 8)), AbortDuringStep("store"), Step(1),
        Add(RequestSpec("next", _OTHER, 2)), Drain(), ForgetLocal(),
        Add(RequestSpec("reload", _LONG, 8)), AbortDuringStep("reload"), Drain(), ForgetLocal(),
        Add(RequestSpec("again", _LONG, 2)), Add(RequestSpec("also", _OTHER, 2)), Drain(),
    )  # fmt: skip
    return Program(name, options, actions)


def aborted_during_a_step() -> Family:
    """Requests aborted when the workers have run their step and the scheduler hasn't taken its results."""
    programs = tuple(_aborted("aborted during a step", EngineOptions(runner=runner)) for runner in RUNNERS)

    def control(program: Program) -> Program:
        actions: list[Action] = []
        for action in program.actions:
            during = isinstance(action, AbortDuringStep)
            actions += [Step(1), Abort(action.request)] if isinstance(action, AbortDuringStep) else []
            actions += [] if during else [action]
        return replace(program, actions=tuple(actions))

    situation = "an abort between a step's execution and its results"
    return Family("aborted during a step", "ORDER-17", programs, _drawn(*programs), situation, control)


def never_scheduled() -> Family:
    """Requests aborted before their first step: the workers hear of them for the first time when they have ended."""
    programs = tuple(
        Program(
            "never scheduled",
            EngineOptions(runner=runner),
            (
                Add(RequestSpec("gone", _LONG)), Abort("gone"), Add(RequestSpec("store", _LONG, 2)),
                Add(RequestSpec("gone too", _OTHER)), Abort("gone too"), Drain(), ForgetLocal(),
                Add(RequestSpec("reload", _LONG, 2)), Drain(),
            ),
        )
        for runner in RUNNERS
    )  # fmt: skip
    return Family("never scheduled", "ORDER-19", programs, _drawn(*programs))


def forward_that_raises() -> Family:
    """A forward that raises after one layer. What was stored in its step is asked for by nobody."""
    actions: tuple[Action, ...] = (
        Add(RequestSpec("store", _OTHER, 2)), Drain(), Add(RequestSpec("failing", _LONG)), FailForward(1),
        Add(RequestSpec("reload", _OTHER, 2)), Drain(),
    )  # fmt: skip
    program = Program("forward that raises", EngineOptions(runner="v1"), actions)
    return Family("forward that raises", "ORDER-21", (program,), _drawn(program))


def scheduled_ahead() -> Family:
    """Asynchronous scheduling: a step is scheduled before the results of the one before are taken."""
    actions: tuple[Action, ...] = (
        Add(RequestSpec("a", _LONG, 40)), Step(3), Add(RequestSpec("b", _OTHER, 20)), Drain(), ForgetLocal(),
        Add(RequestSpec("c", _LONG, 3)), Add(RequestSpec("d", _OTHER, 3)), Drain(),
        ForgetLocal(), Add(RequestSpec("turn", ((3, 9),), 2, continues=RequestSpec("a", _LONG, 40))), Drain(),
    )  # fmt: skip
    programs = tuple(
        Program("scheduled ahead", EngineOptions(runner=runner, async_scheduling=True), actions) for runner in RUNNERS
    )

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, async_scheduling=False))

    situation = "asynchronous scheduling"
    return Family("scheduled ahead", "ORDER-18", programs, _drawn(*programs), situation, control)


# -- metadata --


def blocks_passed_on() -> Family:
    """A load, and a request that gets its blocks as soon as they are free; in the control it gets others."""
    actions: tuple[Action, ...] = (
        Add(RequestSpec("store", _OTHER)), Drain(), ForgetLocal(),
        Add(RequestSpec("reload", _OTHER)), Drain(),
        Add(RequestSpec("next", ((7, 6 * BLOCK - 4),), 8)), Drain(), ForgetLocal(),
        Add(RequestSpec("again", _OTHER)), Drain(),
    )  # fmt: skip
    programs = tuple(
        Program("blocks passed on", EngineOptions(KVCacheShape(num_blocks=8), runner=runner), actions)
        for runner in RUNNERS
    )

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, shape=KVCacheShape(num_blocks=64)))

    situation = "another request in the blocks of the load right after it"
    return Family("blocks passed on", "META-02", programs, _drawn(*programs), situation, control)


def no_new_blocks() -> Family:
    """Prefill chunks and decode steps that fit into the blocks that the request has."""
    programs = tuple(
        Program(
            "no new blocks",
            EngineOptions(runner=runner, max_num_batched_tokens=BLOCK + 1, max_num_seqs=8),
            tuple(store_then_reload([((1, BLOCK + 4),), ((2, 2 * BLOCK + 3),)], 3)),
        )
        for runner in RUNNERS
    )
    return Family("no new blocks", "META-04", programs, _drawn(*programs))


def id_used_again() -> Family:
    """A request id that comes back with another prompt once the first request is over; the control uses new ids."""

    def build(runner: Runner, second: str) -> Program:
        first, other = ((1, 4 * BLOCK + 1),), ((2, 4 * BLOCK + 1),)
        actions: tuple[Action, ...] = (
            # Ended early, so that most of what is known of the id was never computed.
            Add(RequestSpec("a", first)), Step(1), Abort("a"), Step(1), Drain(),
            Add(RequestSpec(second, other, 5)), Drain(), ForgetLocal(),
            Add(RequestSpec("again", first, 2)), Drain(), Add(RequestSpec("last", other, 2)), Drain(),
        )  # fmt: skip
        return Program("id used again", EngineOptions(runner=runner, max_num_batched_tokens=2 * BLOCK), actions)

    def control(program: Program) -> Program:
        return build(program.options.runner, "b")

    programs = tuple(build(runner, "a") for runner in RUNNERS)
    situation = "a request id that was used before"
    return Family("id used again", "META-12", programs, _drawn(*programs), situation, control)
