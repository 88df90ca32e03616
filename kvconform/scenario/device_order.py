"""Scenario families for the order of work on a device: a missing wait shows because what had to be waited for is slow.

Every program first stores and reloads a prompt at full speed, so that kernels are loaded and buffers allocated before
anything is held back: CUDA may synchronise for either. The control is the same program on a fast device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.model import Finding
from kvconform.checks.transfer import left_untouched
from kvconform.engine.byte_events import Arrived, WrongBytes
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt
from kvconform.scenario.program import Action, Add, Drain, ForgetLocal, HoldBack, Program, RequestSpec

# KV cache groups of two precisions: vLLM clears new blocks of such a cache before they are used
# (KVCacheConfig.needs_kv_cache_zeroing, vllm/v1/kv_cache_interface.py, 0.32.0).
CLEARED = KVCacheShape(
    (LayerShape(), LayerShape(dtype="float32", head_size=4, kind="sliding_window", sliding_window=2 * BLOCK + 8)),
    num_blocks=64,
)


def _warm_up() -> list[Action]:
    prompt: Prompt = ((77, 3 * BLOCK + 1),)
    first, again = RequestSpec("warm", prompt), RequestSpec("warm again", prompt)
    return [Add(first), Drain(), ForgetLocal(), Add(again), Drain(), ForgetLocal()]


def _options(**given: object) -> st.SearchStrategy[EngineOptions]:
    return st.builds(lambda runner: EngineOptions(runner=runner, **given), st.sampled_from(RUNNERS))  # type: ignore[arg-type]


def at_full_speed(program: Program) -> Program:
    """The control: nothing is held back."""
    return replace(program, actions=tuple(a for a in program.actions if not isinstance(a, HoldBack)))


# -- saves --


def _saved_late(lengths: Sequence[int], tokens: int, options: EngineOptions) -> Program:
    """Prompts, and tokens generated behind them, are computed by slow kernels; then all of it is reloaded."""
    prompts: list[Prompt] = [((1 + index, length),) for index, length in enumerate(lengths)]
    stored = [RequestSpec(f"store{index}", prompt, tokens) for index, prompt in enumerate(prompts)]
    actions: list[Action] = [*_warm_up(), HoldBack("kernels"), *map(Add, stored), Drain(), HoldBack("nothing")]
    actions.append(ForgetLocal())
    for index, earlier in enumerate(stored):
        turn = RequestSpec(f"reload{index}", ((50 + index, 3),), continues=earlier)
        actions += [Add(turn), Drain()]
    return Program("saves behind slow kernels", options, tuple(actions))


def saves_behind_kernels() -> Family:
    """The kernels that write a step's KV run long after its hooks were called."""
    examples = (
        _saved_late((3 * BLOCK + 1, 2 * BLOCK), 2, EngineOptions()),
        _saved_late((2 * BLOCK,), BLOCK + 2, EngineOptions(runner="v1")),
        _saved_late((4 * BLOCK,), 1, EngineOptions(max_num_batched_tokens=BLOCK + 5)),
        _saved_late((3 * BLOCK,), 2, EngineOptions(runner="v2-full-graph")),
    )
    lengths = st.lists(st.integers(1, 4 * BLOCK), min_size=1, max_size=3)
    drawn = st.builds(_saved_late, lengths, st.integers(1, 4), _options())
    return Family("saves behind slow kernels", "SAVE-14", examples, drawn, "slow kernels", at_full_speed)


# -- loads --


def _loaded(name: str, what: HoldBack, lengths: Sequence[int], options: EngineOptions) -> Program:
    prompts: list[Prompt] = [((1 + index, length),) for index, length in enumerate(lengths)]
    stores = [Add(RequestSpec(f"store{index}", prompt)) for index, prompt in enumerate(prompts)]
    loads = [Add(RequestSpec(f"reload{index}", prompt, 2)) for index, prompt in enumerate(prompts)]
    actions: list[Action] = [*_warm_up(), *stores, Drain(), ForgetLocal(), what, *loads, Drain(), HoldBack("nothing")]
    return Program(name, options, tuple(actions))


def loads_behind_clears() -> Family:
    """vLLM clears the blocks of a synchronous load by a kernel that runs long after start_load_kv was called.

    Those of an asynchronous one it leaves alone (skip_zeroing_group_ids in KVCacheManager.allocate_slots, 0.32.0), and
    from 0.24.0 on it hands out no block to a consumer that a step in flight still uses (Scheduler.defer_block_free).
    """
    name, slow = "loads into blocks that are cleared late", HoldBack("kernels")
    examples = tuple(
        _loaded(name, slow, (3 * BLOCK + 1, BLOCK + 5), EngineOptions(shape=CLEARED, runner=runner))
        for runner in RUNNERS
    )
    drawn = st.builds(
        lambda lengths, options: _loaded(name, slow, lengths, options),
        st.lists(st.integers(BLOCK + 1, 4 * BLOCK), min_size=1, max_size=3),
        _options(shape=CLEARED),
    )
    return Family(name, "LOAD-12", examples, drawn, "slow kernels", at_full_speed, alike=frozenset({"ASYNC-05"}))


def loads_before_readers() -> Family:
    """Copies from the host take long: a forward or a report that does not wait for them comes too early."""
    name, slow = "slow loads", HoldBack("copies")
    examples = tuple(
        _loaded(name, slow, (3 * BLOCK + 1, 2 * BLOCK + 5), EngineOptions(runner=runner)) for runner in RUNNERS
    )
    drawn = st.builds(
        lambda lengths, options: _loaded(name, slow, lengths, options),
        st.lists(st.integers(BLOCK + 1, 4 * BLOCK), min_size=1, max_size=3),
        _options(),
    )
    return Family(name, "LOAD-12", examples, drawn, "slow copies", at_full_speed, alike=frozenset({"ASYNC-05"}))


# -- blocks that are given away --


def _given_away(blocks: int, lengths: Sequence[int], tokens: int, options: EngineOptions) -> Program:
    """Slow saves from blocks that are handed out again in the next steps; what was saved is reloaded."""
    tight = replace(options, shape=replace(options.shape, num_blocks=blocks))
    prompts: list[Prompt] = [((1 + index, length),) for index, length in enumerate(lengths)]
    actions: list[Action] = [*_warm_up(), HoldBack("copies")]
    actions += [Add(RequestSpec(f"store{index}", prompt, tokens)) for index, prompt in enumerate(prompts)]
    actions += [Drain(), HoldBack("nothing"), ForgetLocal()]
    for index, prompt in enumerate(prompts):
        actions += [Add(RequestSpec(f"reload{index}", (*prompt, (60 + index, 3)), 2)), Drain(), ForgetLocal()]
    return Program("slow saves", tight, tuple(actions))


def slow_saves() -> Family:
    """Copies to the host take long, and the blocks that they read are handed out again as soon as may be.

    In the first two programs requests end with their prompts; in the others they outgrow the pool with their first
    generated tokens, so that one loses blocks that it has just completed.
    """
    full = 3 * BLOCK
    examples = tuple(
        _given_away(blocks, (full,) * requests, tokens, EngineOptions(runner=runner))
        for blocks, requests, tokens in ((9, 4, 1), (7, 2, 8))
        for runner in RUNNERS
    )
    lengths = st.lists(st.integers(full - 4, full), min_size=2, max_size=4)
    drawn = st.builds(_given_away, st.sampled_from((7, 9)), lengths, st.integers(1, 10), _options())
    return Family(
        "slow saves",
        "PRE-02",
        examples,
        drawn,
        "slow copies",
        at_full_speed,
        sort=_saved_or_loaded,
        alike=frozenset({"ASYNC-05"}),
    )


def _saved_or_loaded(history: History, _: Finding) -> str:
    """A preempted request may be loaded while copies are slow, so these programs show loads that come late, too.

    Such a load has left its own block as it was handed out. What was saved under another owner's hands is something
    else, be it the poison of the block that it was saved from.
    """
    for event in history.events:
        if not isinstance(event, (WrongBytes, Arrived)):
            continue
        if any(held.kind != "on wrong KV" for held in event.held):
            return "LOAD-12" if left_untouched(event) else "PRE-02"
    return "PRE-02"
