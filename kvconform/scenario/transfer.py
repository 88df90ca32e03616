"""Scenario families for round trips: what is stored by one request must come back for another, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from kvconform.checks.model import Finding
from kvconform.checks.transfer import left_untouched, local_hit_rule
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import Scheduled
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.shape import KVCacheShape
from kvconform.scenario.family import BLOCK, PLAIN, RUNNERS, Family, program, store_then_reload
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

# -- drawing --


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
def reloads(draw: st.DrawFn, shape: KVCacheShape = PLAIN) -> Program:
    """Prompts of drawn lengths, stored and reloaded on caches of this shape."""
    lengths = draw(st.lists(_lengths(), min_size=1, max_size=3))
    actions = draw(_scrambled()) + store_then_reload(
        [((i, n),) for i, n in enumerate(lengths)], draw(st.integers(1, 3))
    )
    return Program("reload", draw(_plain_options(shape)), tuple(actions))


BOUNDARY_LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1)


def reload() -> Family:
    """Cold, then warm, every length around block boundaries."""
    actions = store_then_reload([((i, n),) for i, n in enumerate(BOUNDARY_LENGTHS)])
    examples = tuple(program("reload", actions, runner=runner) for runner in RUNNERS)
    return Family("reload", "LOAD-01", examples, reloads())


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
        program("chunked prefill", store_then_reload([((1, n),)]), max_num_batched_tokens=budget)
        for budget, n in ((32, 64), (24, 57), (17, 50), (31, 3 * BLOCK + 1))
    )
    return Family("chunked prefill", "META-07", examples, _chunks(), "chunked prefill", _unchunked, _chunks_of)


def _forget_before_each(program: Program) -> Program:
    """The same requests with the local prefix cache dropped before every reload, so that every hit starts at 0."""
    actions: list[Action] = []
    for action in program.actions:
        if isinstance(action, Add) and action.request.id.startswith("reload"):
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
        sort=local_hit_rule(otherwise="ALLOC-01"),
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
    # One after the other, later ones find the prefix in the local cache.
    local = replace(partly_local(), control=lambda program: _forget_before_each(_one_after_the_other(program)))
    situation = "requests that share a prefix in one step"
    return Family(
        "shared prefix", "ALLOC-05", examples, drawn, situation, _one_after_the_other, keeps=local.keeps, general=local
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


def _computed_whole(length: int, tail: int, fresh: int, options: EngineOptions) -> Program:
    """A stored prompt is loaded, and then asked for with prompt log probabilities; and one that only these have stored.

    Beside it another one is loaded: in a step that promises no load, start_load_kv comes after the forward
    (KVConnectorModelRunnerMixin._get_kv_connector_output, 0.32.0), and then a load changes nothing any more.
    """
    prompt, other, new = ((1, length),), ((4, 2 * BLOCK + 5),), ((5, fresh),)
    actions: list[Action] = [
        *store_then_reload([prompt, other], 2), ForgetLocal(),
        Add(RequestSpec("beside", other, 2)), Add(RequestSpec("scored", (*prompt, (2, tail)), 2, prompt_logprobs=1)),
        Drain(),
        # Its prefix is in the local cache by now.
        Add(RequestSpec("unread", prompt, 2, skip_reading_prefix_cache=True)), Drain(),
        Add(RequestSpec("new", new, 1, prompt_logprobs=0)), Drain(), ForgetLocal(),
        Add(RequestSpec("later", (*new, (6, 1)), 2)), Drain(),
    ]  # fmt: skip
    return Program("prompt logprobs", options, tuple(actions))


def prompt_logprobs() -> Family:
    """Prompts for requests of which every token has to be computed."""
    examples = (
        _computed_whole(3 * BLOCK + 1, BLOCK, 2 * BLOCK, EngineOptions()),
        _computed_whole(2 * BLOCK + 5, 2 * BLOCK, 3 * BLOCK + 7, EngineOptions(runner="v1")),
    )
    drawn = st.builds(
        _computed_whole, st.integers(BLOCK + 1, 4 * BLOCK), st.integers(1, 40), _lengths(), _plain_options()
    )
    return Family("prompt logprobs", "MATCH-15", examples, drawn)


def _without_preemption(program: Program) -> Program:
    roomy = replace(program.options, shape=replace(program.options.shape, num_blocks=64))
    kept = tuple(action for action in program.actions if not isinstance(action, PreemptAll))
    return replace(program, options=roomy, actions=kept)


def _without_local_cache(program: Program) -> Program:
    return replace(program, options=replace(program.options, enable_prefix_caching=False))


def _next_turn_of(request: RequestSpec) -> list[Action]:
    """Ask for what was saved after a resumption; not where the last block is full but for its last slot (SAVE-13)."""
    if (request.prompt_length + request.max_tokens) % BLOCK == 0:
        return []
    return [ForgetLocal(), Add(RequestSpec("turn", ((9, 5),), 2, continues=request)), Drain()]


def _pressed(blocks: int, first: int, second: int, max_tokens: int, options: EngineOptions) -> Program:
    """Two requests that fit at first and outgrow the pool while they decode; the second is preempted and resumed."""
    shape = replace(options.shape, num_blocks=blocks)
    actions: list[Action] = [
        Add(RequestSpec("a", ((1, first),), max_tokens)), Add(RequestSpec("b", ((2, second),), max_tokens)), Drain(),
        *_next_turn_of(RequestSpec("b", ((2, second),), max_tokens)),
        ForgetLocal(), Add(RequestSpec("again", ((2, second),), 2)), Drain(),
    ]  # fmt: skip
    return Program("preemption", replace(options, shape=shape), tuple(actions))


def _forced(steps: int, length: int, options: EngineOptions) -> Program:
    actions: list[Action] = [
        Add(RequestSpec("a", ((1, length),), 23)), Step(steps), PreemptAll(), Drain(),
        *_next_turn_of(RequestSpec("a", ((1, length),), 23)),
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
    examples = [_pressed(7, 40, 40, 23, EngineOptions(runner=runner)) for runner in RUNNERS]
    examples += [_forced(12, 40, EngineOptions(runner=runner)) for runner in RUNNERS]
    family = Family("preemption", "PRE-01", tuple(examples), drawn, "preemption", _without_preemption)
    # Who comes back may find blocks in the local cache, which is a situation of its own.
    return replace(
        family,
        situation="local hits of preempted requests",
        control=_without_local_cache,
        sort=local_hit_rule(otherwise="PRE-01"),
        keeps=frozenset({"ALLOC-02"}),
        general=replace(family, keeps=frozenset({"ALLOC-02"})),
    )


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


def drafts() -> Family:
    """Drafts are refused while blocks of generated tokens fill up, and the next turn asks for these blocks."""

    def build(prompt: int, generated: int, drafts: int, options: EngineOptions) -> Program:
        # Several, so that some drafts are refused just where a block ends.
        firsts = [RequestSpec(f"first{i}", ((i, prompt + i),), generated) for i in range(4)]
        seconds = [RequestSpec(f"second{i}", ((9, 20),), 2, continues=first) for i, first in enumerate(firsts)]
        actions: list[Action] = [*map(Add, firsts), Drain(), ForgetLocal(), *map(Add, seconds), Drain()]
        roomy = replace(options, drafts=drafts, shape=replace(options.shape, num_blocks=64))
        return Program("drafts", roomy, tuple(actions))

    examples = tuple(build(BLOCK + 3, 4 * BLOCK, 3, EngineOptions(runner=runner)) for runner in RUNNERS)
    drawn = st.builds(build, _lengths(2), st.integers(BLOCK, 4 * BLOCK), st.integers(1, 5), _plain_options())

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, drafts=0))

    def explain(history: History) -> str:
        if any(map(left_untouched, history.of(WrongBytes))):
            return "But nothing was loaded into wrong slots, so what had been stored is not the cause."
        return "The wrong slots were read while they held drafts that the target model refused afterwards."

    def sort(_: History, finding: Finding) -> str:
        """Drafts change which loads share a step; a load that brings nothing has not stored anything wrong."""
        return finding.rule if isinstance(finding.at, WrongBytes) and left_untouched(finding.at) else "META-07"

    return Family("drafts", "META-07", examples, drawn, "speculative decoding", control, explain, sort=sort)


def full_graph() -> Family:
    """Full CUDA graphs: start_load_kv outside any forward context, and no layer hook at all."""
    options = EngineOptions(runner="v2-full-graph")
    # What layer hooks save is missing here, so that an engine with hooks stores for the one without.
    prompt = ((3, 3 * BLOCK - 8),)
    handed_over: list[Action] = [
        Add(RequestSpec("store", prompt)), Drain(), Restart(options), Add(RequestSpec("reload", prompt)), Drain(),
    ]  # fmt: skip
    examples = (
        program("full graph", store_then_reload([((1, 3 * BLOCK + 1),), ((2, BLOCK),)]), runner="v2-full-graph"),
        program("full graph", handed_over),
    )
    drawn = reloads().map(lambda program: replace(program, options=replace(program.options, runner="v2-full-graph")))

    def control(program: Program) -> Program:
        actions = tuple(Restart() if isinstance(action, Restart) else action for action in program.actions)
        return replace(program, options=replace(program.options, runner="v2"), actions=actions)

    return Family("full graph", "LOAD-02", examples, drawn, "full CUDA graphs", control)
