"""Scenario families for models with several KV cache groups."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.hybrid import rule_of
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario.family import RUNNERS, Family, store_then_reload
from kvconform.scenario.program import Action, Add, BreakStore, Drain, ForgetLocal, Program, RequestSpec, Step

WINDOW = 40
#: A window that is no multiple of the block, so that it begins inside one.
WINDOWED = KVCacheShape((LayerShape(2), LayerShape(2, kind="sliding_window", sliding_window=WINDOW)), num_blocks=64)
#: Pages of equal size with twice as many tokens of half as many heads.
TWO_SIZES = KVCacheShape(
    (
        LayerShape(2, num_kv_heads=4),
        LayerShape(2, num_kv_heads=2, block_size=32, kind="sliding_window", sliding_window=WINDOW),
    ),
    num_blocks=64,
)
ONE_GROUP = KVCacheShape((LayerShape(4),), num_blocks=64)
_PROMPTS = [((1, 120),), ((2, 40),), ((3, 71),)]


def _on(shape: KVCacheShape) -> list[Program]:
    reloads = tuple(store_then_reload(_PROMPTS, 3))
    first = RequestSpec("first", ((4, 50),), 60)
    turns = (
        Add(first), Drain(), ForgetLocal(), Add(RequestSpec("second", ((5, 20),), 2, continues=first)), Drain(),
    )  # fmt: skip
    programs = [Program("several groups", EngineOptions(shape, runner=runner), reloads) for runner in RUNNERS]
    chunks = EngineOptions(shape, max_num_batched_tokens=50, max_num_seqs=8)
    return [*programs, Program("several groups", chunks, reloads), Program("several groups", chunks, turns)]


def several_groups() -> Family:
    """Full attention beside sliding windows; the control has one group of full attention."""
    programs = tuple(_on(WINDOWED))

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, shape=ONE_GROUP))

    situation = "a second KV cache group with a sliding window"
    return Family("several groups", "HMA-02", programs, st.sampled_from(programs), situation, control, sort=rule_of)


def broken_store() -> Family:
    """What was promised is gone when the worker loads it; the control has a store that is whole."""
    actions: tuple[Action, ...] = (
        *(Add(RequestSpec(f"store{i}", prompt)) for i, prompt in enumerate(_PROMPTS)), Drain(), ForgetLocal(),
        Add(RequestSpec("whole", _PROMPTS[1])), Drain(), BreakStore("removed", at_load=True),
        Add(RequestSpec("broken", _PROMPTS[0], 3)), Drain(),
    )  # fmt: skip
    programs = tuple(
        Program("failed loads of several groups", EngineOptions(WINDOWED, runner=runner), actions) for runner in RUNNERS
    )

    def control(program: Program) -> Program:
        return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, BreakStore)))

    return Family(
        "failed loads of several groups", "FAIL-15", programs, st.sampled_from(programs), "a broken store", control,
        sort=lambda _, finding: "FAIL-15" if isinstance(finding.at, WrongBytes) else finding.rule,
        general=several_groups(),
    )  # fmt: skip


def two_block_sizes() -> Family:
    """The same with blocks of 16 tokens in one group and of 32 in the other."""
    programs = tuple(_on(TWO_SIZES))

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, shape=WINDOWED))

    situation = "groups of different block sizes"
    general = several_groups()
    return Family("several groups", "HMA-08", programs, st.sampled_from(programs), situation, control, general=general)


def window_blocks_handed_on() -> Family:
    """A window moves on, another request gets its blocks in the same step, and what they held is asked for again.

    The control has no other request. The pools are tight: were blocks handed out in the order in which they came back,
    the other request would still need some of those that the window has just left. In 0.32.0 those without a hash come
    first anyway (BlockPool.free_blocks).
    """
    taker = Add(RequestSpec("taker", ((2, 71),), 2))
    actions = (
        Add(RequestSpec("long", ((1, 120),), 4)), Step(1), taker, Drain(), ForgetLocal(),
        Add(RequestSpec("again", ((1, 60), (3, 8)), 2)), Drain(),
    )  # fmt: skip
    programs = tuple(
        Program("window blocks handed on", EngineOptions(shape, runner=runner), actions)
        for shape, runner in zip(
            (replace(WINDOWED, num_blocks=23), replace(TWO_SIZES, num_blocks=20)), RUNNERS, strict=True
        )
    )

    def control(program: Program) -> Program:
        return replace(program, actions=tuple(action for action in program.actions if action != taker))

    return Family(
        "window blocks handed on", "HMA-11", programs, st.sampled_from(programs), "a request that takes them",
        control, general=two_block_sizes(),
    )  # fmt: skip
