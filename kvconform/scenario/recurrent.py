"""Scenario families for models with recurrent layers (Mamba, linear attention) beside full attention.

As with vLLM's prefix caching of such models, one block size counts for all groups, and a block of a recurrent layer
holds the state after the last token computed in it. The engine keeps few of these states: those at the end of a
prompt's last full block, and where prompts were seen to part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.recurrent import divergent_hit_rule, reused_block_rule, rule_of
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape, LayerShape, State
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt, store_then_reload
from kvconform.scenario.program import Action, Add, Drain, ForgetLocal, Program, RequestSpec, Step

#: A convolution's window and a state space, of other dtypes, as Mamba 2 has them; a state of linear attention alone.
MAMBA: tuple[State, ...] = (((3, 20), "float16"), ((2, 8, 8), "float32"))
LINEAR: tuple[State, ...] = (((2, 8, 8), "bfloat16"),)
#: Those that can hold pages of unequal content (vllm/v1/kv_cache_layout.py, 0.32.0).
LAYOUTS = ("LBNHC", "LBHNC", "BLHNC", "BLNHC")
_PROMPTS: Sequence[Prompt] = (((1, 120),), ((2, 40),), ((3, 71),))
_SITUATION = "recurrent layers"
#: Tokens of requests that take blocks and soon give them back.
_PASSING = 40


def beside_attention(
    states: tuple[State, ...] = MAMBA,
    *,
    attention: int = 2,
    recurrent: int = 4,
    block: int = BLOCK,
    layout: str = "LBNHC",
    num_blocks: int = 64,
) -> KVCacheShape:
    """A cache with so many layers of each kind; pages of states are padded to those of attention, as vLLM has it.

    Source: Platform._align_hybrid_block_size, vllm/platforms/interface.py, 0.32.0.
    """
    full = LayerShape(attention, block_size=block)
    mixer = LayerShape(recurrent, kind="recurrent", block_size=block, states=states)
    padding = full.page_bytes - mixer.page_bytes
    return KVCacheShape((full, replace(mixer, page_padding=padding)), layout, num_blocks)


def _without_recurrent_layers(program: Program) -> Program:
    shape = program.options.shape
    full = replace(shape.layers[0], count=sum(layer.count for layer in shape.layers))
    return replace(program, options=replace(program.options, shape=replace(shape, layers=(full,))))


@st.composite
def _options(draw: st.DrawFn) -> EngineOptions:
    attention = draw(st.integers(1, 2))
    shape = beside_attention(
        draw(st.sampled_from([MAMBA, LINEAR])),
        attention=attention,
        # So many groups as large as that of attention.
        recurrent=attention * draw(st.integers(1, 3)),
        block=draw(st.sampled_from([BLOCK, BLOCK, 2 * BLOCK])),
        layout=draw(st.sampled_from(LAYOUTS)),
    )
    return EngineOptions(
        shape,
        # Also fewer tokens a step than a block has.
        max_num_batched_tokens=draw(st.sampled_from([2048, 2048, 50, 12])),
        max_num_seqs=8,
        runner=draw(st.sampled_from(RUNNERS)),
        crossing=draw(st.sampled_from(("pickle", "reference"))),
        async_scheduling=draw(st.booleans()),
    )


def _reloads(prompts: Sequence[Prompt], options: EngineOptions) -> Program:
    return Program("recurrent state", options, tuple(store_then_reload(prompts, 3)))


def _parted(shared: int, one: int, other: int, options: EngineOptions) -> Program:
    """A prompt that parts from a stored one where no state was kept; then both again."""
    first, second = ((1, shared), (2, one)), ((1, shared), (3, other))
    actions: list[Action] = []
    for name, prompt in (("store", first), ("part", second), ("again", second), ("reload", first)):
        actions += [Add(RequestSpec(name, prompt, 3)), Drain(), ForgetLocal()]
    return Program("recurrent state", options, tuple(actions))


def states() -> Family:
    """Prompts stored and reloaded, in one step and in chunks, and prompts that part from a stored one."""
    plain = beside_attention()
    chunks = EngineOptions(plain, max_num_batched_tokens=50, max_num_seqs=8)
    packed = EngineOptions(beside_attention(LINEAR, attention=1, recurrent=3, layout="BLNHC"))
    examples = (
        *(_reloads(_PROMPTS, EngineOptions(plain, runner=runner)) for runner in RUNNERS),
        _reloads(_PROMPTS, chunks),
        _reloads(_PROMPTS, packed),
        _parted(4 * BLOCK, 40, 20, EngineOptions(plain)),
    )
    prompts = st.lists(st.integers(1, 130), min_size=1, max_size=3)
    drawn = st.one_of(
        st.builds(lambda n, options: _reloads([((i, k),) for i, k in enumerate(n)], options), prompts, _options()),
        st.builds(_parted, st.integers(BLOCK, 80), st.integers(1, 50), st.integers(1, 50), _options()),
    )
    return Family(
        "recurrent state", "HMA-06", examples, drawn, _SITUATION, _without_recurrent_layers,
        sort=rule_of, alike=frozenset({"LAY-01"}),
    )  # fmt: skip


def _busy(lengths: Sequence[int], max_tokens: int, options: EngineOptions) -> Program:
    """Requests that generate side by side, so that states move from block to block, and short ones in between.

    There are as many blocks as they need at most, so that they change hands soon and nothing is preempted: a request
    that comes back to short blocks meets a defect of vLLM (known_engine_bugs.toml: external-state-not-counted).
    """
    full, mixer = options.shape.layers
    # A state, and the one before it, per group.
    states = 2 * (mixer.count // full.count)
    needs = [-(-tokens // full.block_size) + states for tokens in (*(n + max_tokens for n in lengths), _PASSING + 1)]
    options = replace(options, shape=replace(options.shape, num_blocks=1 + sum(needs)))
    prompts = [((i, n),) for i, n in enumerate(lengths)]
    actions: list[Action] = [Add(RequestSpec(f"busy{i}", prompt, max_tokens)) for i, prompt in enumerate(prompts)]
    for i in range(6):
        actions += [Step(3), Add(RequestSpec(f"passing{i}", ((50 + i, _PASSING),), 1))]
    actions += [Drain(), ForgetLocal()]
    for i, prompt in enumerate(prompts):
        actions += [Add(RequestSpec(f"again{i}", prompt, 2)), Drain()]
    return Program("states on the move", options, tuple(actions))


def _roomy(program: Program) -> Program:
    return replace(program, options=replace(program.options, shape=replace(program.options.shape, num_blocks=256)))


def on_the_move() -> Family:
    """States stored while few blocks are free: those that the engine gives up are soon other requests'."""
    examples = tuple(_busy((40, 71, 33), 24, EngineOptions(beside_attention(), runner=runner)) for runner in RUNNERS)
    lengths = st.lists(st.integers(17, 80), min_size=2, max_size=4)
    drawn = st.builds(_busy, lengths, st.integers(20, 40), _options())
    return Family(
        "states on the move", "META-10", examples, drawn, "few free blocks", _roomy,
        sort=reused_block_rule, general=states(),
    )  # fmt: skip


def _diverging(shared: int, one: int, other: int, options: EngineOptions) -> Program:
    """The local cache has the KV of a shared prefix, but no state at its end; the store has both further on."""
    long = ((1, shared), (2, one))
    actions: list[Action] = [
        Add(RequestSpec("store", long, 3)), Drain(), ForgetLocal(),
        Add(RequestSpec("prefix", ((1, shared), (3, other)), 3)), Drain(),
        Add(RequestSpec("reload", long, 3)), Drain(),
    ]  # fmt: skip
    return Program("divergent local hit", options, tuple(actions))


def _forgetting(program: Program) -> Program:
    last = len(program.actions) - 2
    return replace(program, actions=(*program.actions[:last], ForgetLocal(), *program.actions[last:]))


def divergent_hits() -> Family:
    """A local hit that is deeper in full attention than in recurrent layers, and external tokens behind it."""
    examples = tuple(_diverging(4 * BLOCK, 40, 20, EngineOptions(beside_attention(), runner=r)) for r in RUNNERS)
    drawn = st.builds(_diverging, st.integers(2 * BLOCK, 80), st.integers(33, 60), st.integers(1, 50), _options())
    return Family(
        "divergent local hit", "MATCH-23", examples, drawn, "a divergent local hit", _forgetting,
        sort=divergent_hit_rule, general=states(),
    )  # fmt: skip
