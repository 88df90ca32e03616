"""Situations that one engine can show, for connectors that hand off: a pair of engines is in them instead.

Each takes the family that puts a store into the situation, and keeps its rule, its words and its control. What fails
without the situation as well is bound as a failure of the plain hand-off is. Those of loads that are under way, or
fail, are in :mod:`kvconform.scenario.hand_off_transfers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks import hand_off_situations as shown
from kvconform.engine.options import EngineOptions, Runner
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario import composition, identity, order, roles, transfer, workers
from kvconform.scenario.family import BLOCK, RUNNERS, Family
from kvconform.scenario.hand_offs import ROLES, as_hand_off, hand_off, hand_over, options_of, paired, plain
from kvconform.scenario.program import (
    Action,
    Add,
    Drain,
    DummyRun,
    HandOff,
    PreemptAll,
    Program,
    RequestSpec,
    Step,
    Turn,
)

_LENGTHS = (3 * BLOCK + 1, 2 * BLOCK)


# -- set-ups of both engines --


def _one_page_elsewhere(shape: KVCacheShape) -> Program:
    """A prompt that gets other block ids in the consumer than in the producer: one error would undo the other.

    One only: with several, what is written to wrong places may be another load's, and look like one that is late.
    """
    before: list[Action] = [
        Turn("consumer"), Add(RequestSpec("before", ((90, BLOCK + 5),))), Drain(), Turn("producer"),
    ]  # fmt: skip
    actions = [*before, *hand_over([((1, 3 * BLOCK + 1),)])]
    return paired("hand-off", actions, EngineOptions(shape=shape))


def pages(family: Family) -> Family:
    """Caches of the shapes of ``family``, which is one of :mod:`kvconform.scenario.layouts`."""
    shapes = dict.fromkeys(program.options.shape for program in family.examples)
    return as_hand_off(family, [_one_page_elsewhere(shape) for shape in shapes], shown.PAGES)


def model_runner(runner: Runner, rule: str) -> Family:
    """Both engines with one model runner's order of calls."""
    examples = [program for program in hand_off().examples if program.options == options_of(runner)]
    return as_hand_off(order.model_runner(runner, rule), examples, shown.V1 if runner == "v1" else shown.V2)


def separate_objects() -> Family:
    """Roles that exchange pickled objects only."""
    examples = [plain(_LENGTHS, options_of(runner), ROLES) for runner in RUNNERS]
    return as_hand_off(roles.separate_objects(), examples)


def same_objects() -> Family:
    """Roles that are given the very objects."""
    examples = [plain(_LENGTHS, EngineOptions(crossing="reference"), ROLES)]
    return as_hand_off(roles.same_objects(), examples)


def several_workers(rule: str = "SAVE-07") -> Family:
    """Two workers behind each engine."""
    examples = [plain((40, 3 * BLOCK), EngineOptions(runner=runner, workers=2), ROLES) for runner in RUNNERS]
    return as_hand_off(workers.several(rule), examples)


def one_worker_late() -> Family:
    """Two workers behind each engine, the second of which reports some steps later."""
    examples = [plain((40, 3 * BLOCK), EngineOptions(workers=2, late_steps=3), ROLES)]
    return as_hand_off(workers.one_late(), examples)


def without_local_cache() -> Family:
    """Prefix caching switched off in both."""
    examples = [plain(_LENGTHS, EngineOptions(runner=r, enable_prefix_caching=False), ROLES) for r in RUNNERS]
    return as_hand_off(identity.without_local_cache(), examples)


def beside_a_stranger() -> Family:
    """Below MultiConnector with a child of another class; two of one class would both hand off, which vLLM forbids."""

    def alone(program: Program) -> Program:
        return replace(program, options=replace(program.options, place=""))

    options = [
        EngineOptions(runner=runner, place=place, sibling="stranger")
        for runner, place in zip(RUNNERS, composition.PLACES, strict=True)
    ]
    family = replace(composition.beside_a_stranger(), control=alone, general=None)
    return as_hand_off(family, [plain(_LENGTHS, each, ROLES) for each in options])


# -- what happens on the way --


def chunked_prefill() -> Family:
    """A producer whose steps hold a part of the prompt only."""
    in_whole_blocks = EngineOptions(max_num_batched_tokens=2 * BLOCK)
    within_blocks = EngineOptions(runner="v1", max_num_batched_tokens=24)
    examples = [plain((4 * BLOCK,), in_whole_blocks, ROLES), plain((57, 40), within_blocks, ROLES)]
    return as_hand_off(transfer.chunked_prefill(), examples, shown.CHUNKS)


def _alike(requests: Sequence[RequestSpec], runner: Runner) -> Program:
    """All of them at once on either side."""
    kinds = iter((*requests, *requests))
    actions: list[Action] = []
    for action in hand_over([request.prompt for request in requests]):
        if isinstance(action, Add | HandOff):
            kind = next(kinds)
            action = replace(action, request=replace(action.request, lora=kind.lora, salt=kind.salt))
        actions.append(action)
    return paired("look-alikes", actions, options_of(runner))


def _all_alike(program: Program) -> Program:
    """Every prompt is the first one, without adapters and salts."""
    first = next(action.request for action in program.actions if isinstance(action, Add))
    actions = [
        replace(action, request=replace(action.request, prompt=first.prompt, lora=None, salt=None))
        if isinstance(action, Add | HandOff)
        else action
        for action in program.actions
    ]
    return replace(program, actions=tuple(actions))


def look_alikes() -> Family:
    """Prompts of the same tokens whose KV differs, handed off at the same time."""
    tokens = ((1, BLOCK), (9, 2 * BLOCK + 5))
    differing = RequestSpec("r", ((2, BLOCK), (9, 2 * BLOCK + 5)))
    plain_one = RequestSpec("r", tokens)
    adapted, other, salted = (
        RequestSpec("r", tokens, lora="tuned"),
        RequestSpec("r", tokens, lora="other"),
        RequestSpec("r", tokens, salt="tenant"),
    )
    examples = [_alike((plain_one, adapted, other, salted), "v2"), _alike((plain_one, differing, salted), "v1")]
    family = replace(identity.many_look_alikes(), control=_all_alike)
    return as_hand_off(family, examples)


def dummy_runs() -> Family:
    """Forwards without the connector, on both sides, while one computes and the other one loads and decodes."""
    prompts = [((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK + 5),)]
    *first, done, turn, second, third, drain = hand_over(prompts, 6)
    actions: list[Action] = [
        *first, Step(1), DummyRun(), done, DummyRun(),
        turn, second, Step(1), DummyRun(), third, Step(2), DummyRun(), drain,
    ]  # fmt: skip
    return as_hand_off(roles.dummy_runs(), [paired("dummy runs", actions)], shown.DUMMY_RUNS)


def _preempted_prefill(others: int, runner: Runner) -> Program:
    """A prompt in chunks loses its blocks between two chunks, twice, and so do others that the producer decodes."""
    first, *rest = hand_over([((1, 5 * BLOCK),)])
    running: list[Action] = [Add(RequestSpec(f"other{i}", ((50 + i, 5),), 8)) for i in range(others)]
    actions = [*running, first, Step(2), PreemptAll(), Step(1), PreemptAll(), *rest]
    return paired("preempted prefill", actions, EngineOptions(runner=runner, max_num_batched_tokens=2 * BLOCK))


def _preempted_decodes(runner: Runner) -> Program:
    """Two prompts that fit into the consumer's pool, and outgrow it while they are decoded."""
    actions = hand_over([((1, 40),), ((2, 40),)], 23)
    return paired("preempted decode", actions, EngineOptions(KVCacheShape(num_blocks=7), runner=runner))


def _without_preemption(program: Program) -> Program:
    roomy = replace(program.options, shape=KVCacheShape())
    actions = tuple(action for action in program.actions if not isinstance(action, PreemptAll))
    return replace(program, options=roomy, actions=actions)


def preemption() -> Family:
    """A prompt is preempted while it is computed, and one while it is decoded."""
    examples = (_preempted_prefill(0, "v1"), _preempted_decodes("v2"), _preempted_decodes("v1"))
    drawn = st.sampled_from(examples)
    return Family(
        "preempted", "PRE-01", examples, drawn, "preemption", _without_preemption,
        general=chunked_prefill(), shown=shown.PREEMPTIONS,
    )  # fmt: skip


def _alone(program: Program) -> Program:
    """The prompt that is handed off, and no other request."""
    actions = [a for a in program.actions if not (isinstance(a, Add) and a.request.kv_transfer_params is None)]
    return replace(program, actions=tuple(actions))


def all_preempted() -> Family:
    """All requests of the producer are preempted at once, one of which is to be handed off."""
    examples = (_preempted_prefill(2, "v2"), _preempted_prefill(1, "v1"))
    drawn = st.sampled_from(examples)
    situation = "preempting several requests at once"
    return Family("all preempted", "PRE-08", examples, drawn, situation, _alone, general=preemption())


def blocks_passed_on() -> Family:
    """Another request of the consumer gets the blocks of a load as soon as they are free."""
    examples = []
    for runner in RUNNERS:
        actions: list[Action] = [
            *hand_over([((1, 2 * BLOCK + 5),)]), Add(RequestSpec("next", ((7, 6 * BLOCK - 4),), 8)), Drain(),
        ]  # fmt: skip
        examples.append(paired("blocks passed on", actions, EngineOptions(KVCacheShape(num_blocks=8), runner=runner)))
    return as_hand_off(order.blocks_passed_on(), examples)
