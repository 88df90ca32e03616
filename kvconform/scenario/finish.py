"""Scenario families for the end of requests: aborts in every phase, and blocks that change hands while saves run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.calls import finishes, is_held
from kvconform.checks.model import Finding
from kvconform.checks.remembered import ENOUGH
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.program import (
    Abort,
    AbortDuringStep,
    Action,
    Add,
    Drain,
    ForgetLocal,
    Program,
    RequestSpec,
    Step,
)

LONG = 4 * BLOCK


def _options() -> st.SearchStrategy[EngineOptions]:
    return st.builds(lambda runner: EngineOptions(runner=runner), st.sampled_from(RUNNERS))


# -- aborts --


def _aborted(moments: Sequence[int], during: bool, options: EngineOptions) -> Program:
    """Requests in chunks of 24 tokens, each aborted some steps after it came: 0 is before it was ever scheduled."""
    actions: list[Action] = [Add(RequestSpec("stays", ((9, 20),), 30))]
    for index, steps in enumerate(moments):
        request = RequestSpec(f"r{index}", ((20 + index, LONG + 3),), 3)
        leave: list[Action] = [Step(steps), Abort(request.id)] if steps else [Abort(request.id)]
        if during and steps:
            leave = [Step(steps - 1), AbortDuringStep(request.id)]
        actions += [Add(request), *leave, Abort(request.id)]
    actions += [Drain(), ForgetLocal()]
    for index in range(len(moments)):
        actions += [Add(RequestSpec(f"again{index}", ((20 + index, LONG + 3),), 2)), Drain()]
    chunks = replace(options, max_num_batched_tokens=24)
    return Program("aborts", chunks, tuple(actions))


def _without_aborts(program: Program) -> Program:
    actions: list[Action] = []
    for action in program.actions:
        if isinstance(action, AbortDuringStep):
            actions.append(Step(1))
        elif not isinstance(action, Abort):
            actions.append(action)
    return replace(program, actions=tuple(actions))


def aborts() -> Family:
    """Aborted while waiting, in the prefill, in the decode, with the last token, and when it has ended."""
    examples = (
        _aborted((0, 1, 2, 3, 4), False, EngineOptions()),
        _aborted((1, 2, 4, 6, 9), True, EngineOptions(runner="v1")),
    )
    drawn = st.builds(_aborted, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.booleans(), _options())
    return Family("aborts", "FIN-01", examples, drawn, "aborts", _without_aborts)


def _left(prompt: int, options: EngineOptions) -> Program:
    """Some requests leave before anybody looks at them, some while they run, and some stay to the end."""
    actions: list[Action] = []
    for index in range(ENOUGH):
        never = RequestSpec(f"never{index}", ((30 + index, prompt),))
        prefill = RequestSpec(f"prefill{index}", ((40 + index, LONG),), 3)
        decode = RequestSpec(f"decode{index}", ((50 + index, 20),), 30)
        actions += [
            Add(never), Abort(never.id), Add(prefill), Step(1), Abort(prefill.id),
            Add(decode), Step(4), Abort(decode.id),
        ]  # fmt: skip
    # As much is computed for these as for those that leave, whatever a connector keeps from some length on.
    length = max(prompt, 2 * BLOCK)
    for index in range(ENOUGH):
        actions += [Add(RequestSpec(f"stays{index}", ((60 + index, length),), 2)), Drain()]
    # What is tidied up with the next step has one.
    actions += [Add(RequestSpec("after", ((9, 5),))), Drain()]
    return Program("requests that leave", replace(options, max_num_batched_tokens=24), tuple(actions))


def requests_that_leave() -> Family:
    """Aborted before they were asked about, in the prefill and in the decode, beside others that end by themselves."""
    examples = tuple(_left(LONG - 3, EngineOptions(runner=runner)) for runner in RUNNERS)
    drawn = st.builds(_left, st.integers(1, LONG), _options())
    return Family("requests that leave", "FIN-11", examples, drawn, "aborts", _without_aborts)


# -- blocks that change hands --


def _handed_on(length: int, max_tokens: int, wait: int, options: EngineOptions) -> Program:
    """A request ends, others take its blocks at once, and its prompt is reloaded."""
    first = RequestSpec("first", ((1, length),), max_tokens)
    takers: list[Action] = []
    for index in range(3):
        takers += [Add(RequestSpec(f"taker{index}", ((5 + index, 4 * BLOCK + 5),), 2)), Step(1)]
    actions: list[Action] = [
        Add(first), Step(max_tokens + wait), *takers, Drain(), ForgetLocal(),
        Add(RequestSpec("again", ((1, length), (9, 3)), 2)), Drain(),
    ]  # fmt: skip
    tight = replace(options, shape=replace(options.shape, num_blocks=9))
    return Program("blocks handed on", tight, tuple(actions))


def _in_good_time(program: Program) -> Program:
    """The same on a pool in which nobody has to take the blocks, and with everything done before the others come."""
    roomy = replace(program.options, shape=replace(program.options.shape, num_blocks=64))
    actions: list[Action] = []
    for action in program.actions:
        actions += [action, Drain()] if isinstance(action, Add) else [action]
    return replace(program, options=roomy, actions=tuple(actions))


def _owner_rule(history: History, finding: Finding) -> str:
    """Whether the request whose bytes are wrong was held at its end, or let go."""
    for call in finishes(history):
        if call.args["request"] == "first":
            return "SAVE-02" if is_held(call) else "FIN-09"
    return finding.rule


def blocks_handed_on() -> Family:
    """Blocks of a request that has just ended are given to others while its saves may still read them."""
    examples = (
        _handed_on(LONG, 1, 0, EngineOptions()),
        _handed_on(LONG - 3, 4, 0, EngineOptions(runner="v1")),
        _handed_on(2 * BLOCK + 1, 1, 0, EngineOptions()),
    )
    drawn = st.builds(_handed_on, st.integers(BLOCK, LONG), st.integers(1, 4), st.integers(0, 2), _options())
    return Family(
        "blocks handed on", "FIN-09", examples, drawn, "handing the blocks on", _in_good_time, sort=_owner_rule
    )


def _chunks(length: int, budget: int, options: EngineOptions) -> Program:
    """Prompts that are computed and saved in several steps, with the blocks wanted as soon as they end."""
    program = _handed_on(length, 1, -(-length // budget) - 1, options)
    # The takers come in chunks as well, so the pool is tighter: they need the blocks with their second chunk.
    tight = replace(program.options, max_num_batched_tokens=budget, shape=replace(options.shape, num_blocks=7))
    return replace(program, name="saves in chunks", options=tight)


def _unchunked(program: Program) -> Program:
    return replace(program, options=replace(program.options, max_num_batched_tokens=2048))


def saves_in_chunks() -> Family:
    """A request with one save for each chunk of its prompt ends when some of them are done and others are not."""
    examples = (_chunks(LONG, 32, EngineOptions()), _chunks(LONG, 24, EngineOptions(runner="v1")))
    drawn = st.builds(_chunks, st.integers(3 * BLOCK, LONG), st.integers(16, 40), _options())
    whole = replace(blocks_handed_on(), examples=examples, strategy=drawn)
    return Family("saves in chunks", "ASYNC-20", examples, drawn, "chunked prefill", _unchunked, general=whole)
