"""Scenario families for round trips: what is stored by one request must come back for another, byte for byte.

Each family is one situation. ``examples`` always run; ``strategy`` draws more. ``control`` is the same program without
the situation: if the control is right and the family is not, the situation's own rule is broken, not the general one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from kvconform.checks.model import Finding
from kvconform.engine.history import History, Scheduled
from kvconform.engine.options import EngineOptions, Runner
from kvconform.kvcache.shape import LAYOUTS, KVCacheShape, LayerShape
from kvconform.scenario.program import (
    Action,
    Add,
    Drain,
    ForgetLocal,
    PreemptAll,
    Program,
    RequestSpec,
    Restart,
    Step,
)

Strategy = st.SearchStrategy[Program]
BLOCK = 16
PLAIN = KVCacheShape()


@dataclass(frozen=True)
class Family:
    """One situation. ``situation`` completes the sentence "The connector is right without ...": "chunked prefill".

    ``keeps`` are rules whose findings stay theirs, because this very situation is what they are about; ``explain``
    adds a sentence about a failing history. ``sort`` names the rule of a symptom where the situation is about several;
    ``general`` is the family of which this one is a special case: it decides if the control shows symptoms, too.
    """

    name: str
    rule: str
    examples: tuple[Program, ...]
    strategy: Strategy
    situation: str = ""
    control: Callable[[Program], Program] | None = None
    explain: Callable[[History], str] | None = None
    keeps: frozenset[str] = frozenset()
    sort: Callable[[History, Finding], str] | None = None
    general: Family | None = None


def _program(name: str, actions: Sequence[Action], **options: object) -> Program:
    return Program(name, EngineOptions(**options), tuple(actions))  # type: ignore[arg-type]


def store_then_reload(prompts: Sequence[tuple[tuple[int, int], ...]], max_tokens: int = 1) -> list[Action]:
    """Compute every prompt once, drop the local prefix cache, and ask for each again."""
    stored = [Add(RequestSpec(f"store{i}", prompt, max_tokens)) for i, prompt in enumerate(prompts)]
    reload = [Add(RequestSpec(f"reload{i}", prompt, max_tokens)) for i, prompt in enumerate(prompts)]
    actions: list[Action] = []
    for add in stored:
        actions += [add, Drain()]
    actions.append(ForgetLocal())
    for add in reload:
        actions += [add, Drain()]
    return actions


# -- drawing --

RUNNERS: tuple[Runner, ...] = ("v2", "v1")


@st.composite
def _plain_options(draw: st.DrawFn, shape: KVCacheShape = PLAIN) -> EngineOptions:
    return EngineOptions(
        shape=shape, runner=draw(st.sampled_from(RUNNERS)), crossing=draw(st.sampled_from(("pickle", "reference")))
    )


def _lengths(blocks: int = 3) -> st.SearchStrategy[int]:
    """1 token to ``blocks`` blocks and one token, boundaries often."""
    limit = blocks * BLOCK + 1
    near = [k * BLOCK + d for k in range(blocks + 1) for d in (-1, 0, 1) if 1 <= k * BLOCK + d <= limit]
    return st.one_of(st.sampled_from(near), st.integers(1, limit))


@st.composite
def _scrambled(draw: st.DrawFn) -> list[Action]:
    """Requests of other prompts that come and go, so that block ids are handed out in no order."""
    fillers = draw(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 4)), max_size=3))
    actions: list[Action] = [Add(RequestSpec(f"filler{i}", ((900 + i, n),), m)) for i, (n, m) in enumerate(fillers)]
    return [*actions, Drain()] if actions else []


@st.composite
def _reloads(draw: st.DrawFn, shape: KVCacheShape = PLAIN) -> Program:
    lengths = draw(st.lists(_lengths(), min_size=1, max_size=3))
    actions = draw(_scrambled()) + store_then_reload(
        [((i, n),) for i, n in enumerate(lengths)], draw(st.integers(1, 3))
    )
    return Program("reload", draw(_plain_options(shape)), tuple(actions))


BOUNDARY_LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1)


def reload() -> Family:
    """Cold, then warm, every length around block boundaries."""
    actions = store_then_reload([((i, n),) for i, n in enumerate(BOUNDARY_LENGTHS)])
    examples = tuple(_program("reload", actions, runner=runner) for runner in RUNNERS)
    return Family("reload", "LOAD-01", examples, _reloads())


def _on_plain_shape(program: Program) -> Program:
    options = replace(program.options, shape=PLAIN)
    return replace(program, options=options)


def _shape_family(
    rule: str, situation: str, shapes: Sequence[KVCacheShape], drawn: st.SearchStrategy[KVCacheShape]
) -> Family:
    actions = store_then_reload([((1, 3 * BLOCK + 1),), ((2, 2 * BLOCK),)])
    examples = tuple(_program("reload", actions, shape=shape) for shape in shapes)
    return Family("reload", rule, examples, drawn.flatmap(_reloads), situation, _on_plain_shape)


def layout(name: str) -> Family:
    """One of the six physical orders, with several layers and heads so that every order differs from every other."""
    shapes = st.builds(
        lambda count, heads, size: KVCacheShape((LayerShape(count, num_kv_heads=heads, head_size=size),), name),
        st.integers(2, 4),
        st.sampled_from([2, 3, 4]),
        st.sampled_from([4, 8, 12]),
    )
    shape = KVCacheShape((LayerShape(3, num_kv_heads=2, head_size=8),), name)
    return _shape_family("LAY-03", f"the layout {name}", [shape], shapes)


def dtype(name: str) -> Family:
    """Elements of one dtype; the oracle's bytes cover every bit pattern."""
    shapes = st.builds(lambda n: KVCacheShape((LayerShape(dtype=name),), n), st.sampled_from(LAYOUTS))
    return _shape_family("LAY-13", f"dtype {name}", [KVCacheShape((LayerShape(dtype=name),))], shapes)


def head_widths() -> Family:
    """K and V of different widths, and head counts that invite guessing the meaning of a dimension."""
    layers = [
        LayerShape(head_size=8, head_size_v=4),
        LayerShape(head_size=4, head_size_v=12, num_kv_heads=4),
        LayerShape(head_size=8, num_kv_heads=1),
    ]
    drawn = st.builds(
        lambda h, k, v, n: KVCacheShape((LayerShape(num_kv_heads=h, head_size=k, head_size_v=v),), n),
        st.sampled_from([1, 2, 4, BLOCK]),
        st.sampled_from([4, 8, BLOCK]),
        st.sampled_from([4, 8, 20]),
        st.sampled_from(LAYOUTS),
    )
    return _shape_family("LAY-15", "K and V of these widths", [KVCacheShape((layer,)) for layer in layers], drawn)


def mla() -> Family:
    """One latent per token, no separate V."""
    layer = LayerShape(kind="mla", num_kv_heads=1, head_size=24)
    drawn = st.builds(
        lambda size, n: KVCacheShape((replace(layer, head_size=size),), n),
        st.sampled_from([8, 18, 24, 36]),
        st.sampled_from(LAYOUTS),
    )
    return _shape_family("LAY-14", "an MLA cache", [KVCacheShape((layer,)), KVCacheShape((layer,), "BLNHC")], drawn)


def padded_pages() -> Family:
    """Unused bytes between pages, which belong to no token."""
    drawn = st.builds(
        lambda padding, n: KVCacheShape((LayerShape(page_padding=2 * padding),), n),
        st.integers(1, 600),
        st.sampled_from(("LBNHC", "LBHNC", "BLNHC", "BLHNC")),
    )
    shapes = [KVCacheShape((LayerShape(page_padding=64),)), KVCacheShape((LayerShape(page_padding=1024),), "BLHNC")]
    return _shape_family("LAY-12", "padded pages", shapes, drawn)


def kernel_blocks() -> Family:
    """Registered tensors whose first dimension counts kernel blocks, smaller than the scheduler's blocks."""
    drawn = st.builds(
        lambda kernel, n: KVCacheShape(layout=n, kernel_block_size=kernel),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from(("LBNHC", "LBHNC")),
    )
    shapes = [KVCacheShape(kernel_block_size=8), KVCacheShape(layout="LBHNC", kernel_block_size=4)]
    return _shape_family("LAY-10", "kernel blocks smaller than the scheduler's blocks", shapes, drawn)


# -- flows --


def _unchunked(program: Program) -> Program:
    return replace(program, options=replace(program.options, max_num_batched_tokens=2048))


@st.composite
def _chunks(draw: st.DrawFn) -> Program:
    budget = draw(st.sampled_from([BLOCK, BLOCK + 1, BLOCK - 1 + 2, 24, 2 * BLOCK, 40]))
    length = draw(st.integers(budget + 1, 6 * BLOCK))
    others = draw(st.lists(_lengths(), max_size=2))
    prompts = [((i, n),) for i, n in enumerate([length, *others])]
    options = replace(draw(_plain_options()), max_num_batched_tokens=budget, max_num_seqs=8)
    return Program("chunked prefill", options, tuple(store_then_reload(prompts, draw(st.integers(1, 2)))))


def _chunks_of(history: History) -> str:
    """Which prompts were stored in several steps, and in what pieces."""
    pieces: dict[str, list[int]] = {}
    for event in history.of(Scheduled):
        for request, count in event.scheduled.items():
            if request.startswith("store"):
                pieces.setdefault(request, []).append(count)
    texts = [f"{r} was computed in steps of {' + '.join(map(str, p))} tokens" for r, p in pieces.items() if len(p) > 1]
    return (
        "; ".join(texts)
        + ": each step holds only its own piece, so what it stores must not carry the whole prompt's key."
    )


def chunked_prefill() -> Family:
    """Prompts longer than the step's token budget: chunk borders inside a block, on a block, one token off."""
    examples = tuple(
        _program("chunked prefill", store_then_reload([((1, n),)]), max_num_batched_tokens=budget)
        for budget, n in ((32, 64), (24, 57), (17, 50), (31, 3 * BLOCK + 1))
    )
    return Family("chunked prefill", "META-07", examples, _chunks(), "chunked prefill", _unchunked, _chunks_of)


def _forget_before_each(program: Program) -> Program:
    """The same requests with the local prefix cache dropped before every reload, so that every hit starts at 0."""
    actions: list[Action] = []
    for action in program.actions:
        if isinstance(action, Add) and action.request.id == "reload":
            actions.append(ForgetLocal())
        actions.append(action)
    return replace(program, actions=tuple(actions))


def _partly_local(prefix: int, rest: int, options: EngineOptions) -> Program:
    long = ((1, prefix), (2, rest))
    actions: list[Action] = [
        Add(RequestSpec("store", long)), Drain(), ForgetLocal(),
        # Brings the prefix back into the local cache; its own tail keeps it from being a hit for the whole.
        Add(RequestSpec("prefix", ((1, prefix), (3, 5)))), Drain(),
        Add(RequestSpec("reload", long)), Drain(),
        # Now the local hit is as long as anything that can be stored, or longer.
        Add(RequestSpec("local", long)), Drain(),
    ]  # fmt: skip
    return Program("partly local", options, tuple(actions))


def partly_local() -> Family:
    """A local hit, external blocks behind it, and tokens to compute behind those."""
    sizes = [(BLOCK, BLOCK + 3), (2 * BLOCK, 2 * BLOCK + 1), (BLOCK + 7, 2 * BLOCK), (3 * BLOCK, BLOCK)]
    drawn = st.builds(_partly_local, st.integers(BLOCK, 4 * BLOCK), st.integers(BLOCK, 4 * BLOCK), _plain_options())
    examples = tuple(_partly_local(a, b, EngineOptions(runner=r)) for (a, b) in sizes for r in RUNNERS)
    return Family(
        "partly local",
        "ALLOC-01",
        examples,
        drawn,
        "a local hit before the external one",
        _forget_before_each,
        keeps=frozenset({"ALLOC-02"}),
    )


def _one_after_the_other(program: Program) -> Program:
    actions: list[Action] = []
    for action in program.actions:
        actions.append(action)
        if isinstance(action, Add):
            actions.append(Drain())
    return replace(program, actions=tuple(actions))


def _together(lengths: Sequence[int], shared: int, options: EngineOptions) -> Program:
    prompts = [((1, shared), (10 + i, n)) for i, n in enumerate(lengths)]
    stores: list[Action] = [Add(RequestSpec(f"store{i}", prompt, 2)) for i, prompt in enumerate(prompts)]
    reloads: list[Action] = [Add(RequestSpec(f"reload{i}", prompt, 2)) for i, prompt in enumerate(prompts)]
    return Program("shared prefix", options, (*stores, Drain(), ForgetLocal(), *reloads, Drain()))


def shared_prefix() -> Family:
    """Several requests with one prefix in the same step, stored together and loaded together."""
    drawn = st.builds(
        _together, st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(1, 3 * BLOCK), _plain_options()
    )
    examples = tuple(
        _together(lengths, shared, EngineOptions()) for lengths, shared in (((1, 1), 33), ((5, 20, 30), 32))
    )
    return Family(
        "shared prefix", "ALLOC-05", examples, drawn, "requests that share a prefix in one step", _one_after_the_other
    )


def full_hit() -> Family:
    """Prompts of whole blocks, stored completely and more, so that every token could be offered."""

    def build(blocks: int, more: int, options: EngineOptions) -> Program:
        actions: list[Action] = [
            Add(RequestSpec("store", ((1, blocks * BLOCK), (2, more)))), Drain(), ForgetLocal(),
            Add(RequestSpec("reload", ((1, blocks * BLOCK),))), Drain(),
        ]  # fmt: skip
        return Program("full hit", options, tuple(actions))

    drawn = st.builds(build, st.integers(1, 4), st.integers(0, 2 * BLOCK), _plain_options())
    return Family(
        "full hit", "MATCH-05", tuple(build(k, m, EngineOptions()) for k, m in ((1, 17), (2, 32), (3, 0))), drawn
    )


def _without_preemption(program: Program) -> Program:
    roomy = replace(program.options, shape=replace(program.options.shape, num_blocks=64))
    kept = tuple(action for action in program.actions if not isinstance(action, PreemptAll))
    return replace(program, options=roomy, actions=kept)


def _pressed(blocks: int, first: int, second: int, max_tokens: int, options: EngineOptions) -> Program:
    """Two requests that fit at first and outgrow the pool while they decode; the second is preempted and resumed."""
    shape = replace(options.shape, num_blocks=blocks)
    actions: list[Action] = [
        Add(RequestSpec("a", ((1, first),), max_tokens)), Add(RequestSpec("b", ((2, second),), max_tokens)), Drain(),
        ForgetLocal(), Add(RequestSpec("again", ((2, second),), 2)), Drain(),
    ]  # fmt: skip
    return Program("preemption", replace(options, shape=shape), tuple(actions))


def _forced(steps: int, length: int, options: EngineOptions) -> Program:
    actions: list[Action] = [
        Add(RequestSpec("a", ((1, length),), 24)), Step(steps), PreemptAll(), Drain(),
        ForgetLocal(), Add(RequestSpec("again", ((1, length),), 2)), Drain(),
    ]  # fmt: skip
    return Program("preemption", options, tuple(actions))


def preemption() -> Family:
    """Preempted by pressure and by reset, resumed with other blocks and with external hits on what was saved before."""
    drawn = st.one_of(
        st.builds(
            _pressed, st.just(7), st.integers(33, 46), st.integers(33, 46), st.integers(20, 30), _plain_options()
        ),
        st.builds(_forced, st.integers(1, 20), st.integers(10, 60), _plain_options()),
    )
    examples = [_pressed(7, 40, 40, 24, EngineOptions(runner=runner)) for runner in RUNNERS]
    examples += [_forced(12, 40, EngineOptions(runner=runner)) for runner in RUNNERS]
    return Family("preemption", "PRE-01", tuple(examples), drawn, "preemption", _without_preemption)


def restart() -> Family:
    """A new engine on the same store, after a shutdown."""

    def build(lengths: Sequence[int], options: EngineOptions) -> Program:
        stores: list[Action] = [Add(RequestSpec(f"store{i}", ((i, n),), 2)) for i, n in enumerate(lengths)]
        reloads: list[Action] = [Add(RequestSpec(f"reload{i}", ((i, n),), 2)) for i, n in enumerate(lengths)]
        return Program("restart", options, (*stores, Drain(), Restart(), *reloads, Drain()))

    drawn = st.builds(build, st.lists(_lengths(), min_size=1, max_size=3), _plain_options())
    return Family("restart", "LOAD-01", (build((3 * BLOCK + 1, 40), EngineOptions()),), drawn)


def _without_generation(program: Program) -> Program:
    """The next turn's prompt computed as a prompt before, so that no stored slot stems from a decode step."""
    turn = next(action.request for action in program.actions if isinstance(action, Add) and action.request.continues)
    whole = replace(turn, id="store", max_tokens=1)
    return replace(program, actions=(Add(whole), Drain(), ForgetLocal(), Add(turn), Drain()))


def next_turn() -> Family:
    """A second turn on top of generated tokens: the slot of the last sampled token was never computed."""

    def build(prompt: int, generated: int, more: int, options: EngineOptions) -> Program:
        first = RequestSpec("first", ((1, prompt),), generated)
        second = RequestSpec("second", ((2, more),), 2, continues=first)
        return Program("next turn", options, (Add(first), Drain(), ForgetLocal(), Add(second), Drain()))

    # prompt + generated a multiple of the block: the final block looks full and has one slot that nobody wrote.
    ends = [(2 * BLOCK - 5, 5), (BLOCK, BLOCK), (BLOCK + 9, 7 + BLOCK), (2 * BLOCK + 1, 2)]
    examples = tuple(build(p, g, 20, EngineOptions(runner=runner)) for (p, g) in ends for runner in RUNNERS)
    drawn = st.builds(build, _lengths(2), st.integers(1, 2 * BLOCK), st.integers(1, 40), _plain_options())
    return Family("next turn", "SAVE-13", examples, drawn, "generated tokens in the prefix", _without_generation)


def full_graph() -> Family:
    """Full CUDA graphs: start_load_kv outside any forward context, and no layer hook at all."""
    actions = store_then_reload([((1, 3 * BLOCK + 1),), ((2, BLOCK),)])
    options = EngineOptions(runner="v2-full-graph")
    drawn = _reloads().map(lambda program: replace(program, options=replace(program.options, runner="v2-full-graph")))

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, runner="v2"))

    return Family(
        "full graph", "LOAD-02", (Program("full graph", options, tuple(actions)),), drawn, "full CUDA graphs", control
    )
