"""Scenario families for a producer and a consumer: one engine computes a prompt, the other one decodes it.

The front-end is that of vLLM's disaggregated-prefill proxies (examples/online_serving/disaggregated_serving, 0.32.0):
the producer gets the prompt with ``do_remote_decode`` and max_tokens=1, the consumer the same prompt under another id
and with the kv_transfer_params that came back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from kvconform.checks.model import Finding
from kvconform.engine.history import History, WrongBytes
from kvconform.engine.options import EngineOptions, Runner
from kvconform.kvcache.shape import KVCacheShape, LayerShape
from kvconform.scenario.program import (
    Abort,
    Action,
    Add,
    Drain,
    FinishRequests,
    HandOff,
    KVRole,
    Leave,
    Outlast,
    Program,
    RequestSpec,
    Step,
    Turn,
)
from kvconform.scenario.transfer import BLOCK, RUNNERS, Family

Prompt = tuple[tuple[int, int], ...]

#: What a proxy puts into the request for the producer.
REMOTE_DECODE: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
ROLES: tuple[KVRole, KVRole] = ("kv_producer", "kv_consumer")
BOTH: tuple[KVRole, KVRole] = ("kv_both", "kv_both")


def prefill(name: str, prompt: Prompt, max_tokens: int = 1, *, stops: bool = False) -> Add:
    """A request for the producer."""
    return Add(RequestSpec(name, prompt, max_tokens, kv_transfer_params=dict(REMOTE_DECODE), stops=stops))


def _pair(
    name: str, actions: Sequence[Action], options: EngineOptions | None = None, roles: tuple[KVRole, KVRole] = ROLES
) -> Program:
    return Program(name, options or EngineOptions(), tuple(actions), pair=roles)


def hand_over(prompts: Sequence[Prompt], max_tokens: int = 2, *, first_token: bool = False) -> list[Action]:
    """Every prompt is computed by the producer, then all of them are decoded by the consumer.

    With ``first_token`` the consumer's prompt ends with the token that the producer has sampled, as some proxies do.
    """
    prefills = [prefill(f"prefill{i}", prompt) for i, prompt in enumerate(prompts)]
    actions: list[Action] = [*prefills, FinishRequests(), Turn("consumer")]
    for i, (prompt, add) in enumerate(zip(prompts, prefills, strict=True)):
        first = replace(add.request, kv_transfer_params=None)
        request = RequestSpec(f"decode{i}", prompt, max_tokens)
        if first_token:
            request = RequestSpec(f"decode{i}", (), max_tokens, continues=first)
        actions.append(HandOff(request, add.request.id))
    return [*actions, Drain()]


# -- drawing --


def _options(runner: Runner = "v2") -> EngineOptions:
    return EngineOptions(runner=runner)


_RUNNERS = st.sampled_from(RUNNERS).map(_options)
_LENGTHS = st.one_of(st.sampled_from([k * BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1)]), st.integers(1, 4 * BLOCK))
_PAIRS = st.sampled_from((ROLES, BOTH))


# -- the plain hand-off --


def _with_equal_ids(program: Program) -> Program:
    """Both engines get a request under one id, so that an id of this engine is one of the other as well."""
    actions: list[Action] = [
        replace(action, request=replace(action.request, id=action.of)) if isinstance(action, HandOff) else action
        for action in program.actions
    ]
    return replace(program, actions=tuple(actions))


def _plain(lengths: Sequence[int], options: EngineOptions, roles: tuple[KVRole, KVRole]) -> Program:
    return _pair("hand-off", hand_over([((i, n),) for i, n in enumerate(lengths)]), options, roles)


def hand_off() -> Family:
    """Prompts of every length around block boundaries; the two engines know them by different ids."""
    lengths = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1)
    examples = (
        _plain(lengths, _options("v2"), ROLES),
        _plain(lengths, _options("v1"), BOTH),
        _plain((40, 3 * BLOCK), EngineOptions(workers=2), ROLES),
        _plain((40, 3 * BLOCK), EngineOptions(async_scheduling=True), ROLES),
    )
    drawn = st.builds(_plain, st.lists(_LENGTHS, min_size=1, max_size=3), _RUNNERS, _PAIRS)
    return Family("hand-off", "FIN-12", examples, drawn, "different request ids", _with_equal_ids)


def demonstration() -> tuple[Program, ...]:
    """What shows whether a connector hands off at all."""
    return (_plain((2 * BLOCK + 3, 3 * BLOCK), _options(), ROLES),)


def layouts() -> Family:
    """Caches of several orders and kinds of pages."""
    shapes = (
        KVCacheShape((LayerShape(3, num_kv_heads=2, head_size=8),), "BLHNC"),
        KVCacheShape((LayerShape(2, num_kv_heads=4, head_size=4, head_size_v=12),), "LBHNC"),
        KVCacheShape((LayerShape(kind="mla", num_kv_heads=1, head_size=24),)),
        KVCacheShape((LayerShape(page_padding=64, dtype="uint8"),)),
        KVCacheShape(kernel_block_size=8),
    )

    def build(shape: KVCacheShape) -> Program:
        return _plain((3 * BLOCK + 1, 2 * BLOCK), EngineOptions(shape=shape), ROLES)

    def control(program: Program) -> Program:
        return replace(program, options=replace(program.options, shape=KVCacheShape()))

    examples = tuple(build(shape) for shape in shapes)
    drawn = st.sampled_from(shapes).map(build)
    return Family("hand-off", "LAY-03", examples, drawn, "this layout of the KV cache", control, general=hand_off())


# -- block lists of different lengths --


def _unequal(cached: int, rest: int, tail: bool, options: EngineOptions) -> Program:
    """The consumer has ``cached`` tokens of the prompt, or its prompt ends with the first sampled token, or both."""
    prompt: Prompt = ((1, cached), (2, rest)) if cached else ((2, rest),)
    warm: list[Action] = []
    if cached:
        warm = [Turn("consumer"), Add(RequestSpec("local", ((1, cached), (3, 5)))), Drain(), Turn("producer")]
    return _pair("unequal lists", [*warm, *hand_over([prompt], first_token=tail)], options)


def _equal_lists(program: Program) -> Program:
    """The same prompt with nothing in the consumer's cache, and nothing behind it."""
    actions: list[Action] = []
    for action in program.actions:
        if isinstance(action, Add) and not action.request.kv_transfer_params:
            continue
        if isinstance(action, HandOff) and action.request.continues is not None:
            request = replace(action.request, prompt=action.request.continues.prompt, continues=None)
            action = replace(action, request=request)
        actions.append(action)
    return replace(program, actions=tuple(actions))


def unequal_lists() -> Family:
    """A local hit on the consumer's side, and a first token at the end of its prompt."""
    sizes = ((BLOCK, BLOCK + 3, False), (2 * BLOCK, 2 * BLOCK, False), (0, 2 * BLOCK, True), (2 * BLOCK, BLOCK, True))
    examples = tuple(_unequal(*size, _options(RUNNERS[i % 2])) for i, size in enumerate(sizes))
    drawn = st.builds(
        _unequal, st.sampled_from((0, BLOCK, 2 * BLOCK, 40)), st.integers(2, 3 * BLOCK), st.booleans(), _RUNNERS
    )
    return Family(
        "unequal lists", "LOAD-11", examples, drawn, "block lists of different length", _equal_lists, general=hand_off()
    )


def _longer_tables(max_tokens: int, length: int, options: EngineOptions) -> Program:
    actions = hand_over([((1, length),)])
    first = prefill("prefill0", ((1, length),), max_tokens)
    return _pair("longer tables", [first, *actions[1:]], options)


def _one_token(program: Program) -> Program:
    actions = [
        replace(action, request=replace(action.request, max_tokens=1)) if isinstance(action, Add) else action
        for action in program.actions
    ]
    return replace(program, actions=tuple(actions))


def longer_tables() -> Family:
    """The producer generates some tokens itself, so that its block table goes on behind the prompt."""
    sizes = ((4, 2 * BLOCK), (BLOCK + 2, 2 * BLOCK + 5), (2, 3 * BLOCK))
    examples = tuple(_longer_tables(n, length, _options(RUNNERS[i % 2])) for i, (n, length) in enumerate(sizes))
    drawn = st.builds(_longer_tables, st.integers(2, 20), _LENGTHS, _RUNNERS)
    return Family(
        "longer tables", "FIN-14", examples, drawn, "tokens that the producer generates", _one_token, general=hand_off()
    )


# -- what is held, and for how long --


def _busy(length: int, others: int, options: EngineOptions) -> Program:
    """Between prefill and fetch the producer has other requests, which take every block that they can get."""
    busy: list[Action] = []
    for index in range(others):
        busy += [Add(RequestSpec(f"other{index}", ((50 + index, 4 * BLOCK + 5),), 2)), FinishRequests()]
    first, done, *rest = hand_over([((1, length),)])
    tight = replace(options, shape=replace(options.shape, num_blocks=11))
    return _pair("producer goes on", [first, done, *busy, *rest], tight)


def _idle_producer(program: Program) -> Program:
    actions = [a for a in program.actions if not isinstance(a, Add) or a.request.kv_transfer_params is not None]
    return replace(program, actions=tuple(actions))


def producer_goes_on() -> Family:
    """What is held for the consumer stays as it is while the producer computes other requests."""
    examples = (_busy(3 * BLOCK, 3, _options("v2")), _busy(2 * BLOCK + 5, 3, _options("v1")))
    drawn = st.builds(_busy, st.integers(1, 4 * BLOCK), st.integers(2, 4), _RUNNERS)
    return Family(
        "producer goes on",
        "ASYNC-08",
        examples,
        drawn,
        "other requests on the producer",
        _idle_producer,
        general=hand_off(),
    )


def _unfetched(count: int, fetched: int, options: EngineOptions) -> Program:
    prompts: list[Prompt] = [((i, 2 * BLOCK + i),) for i in range(count)]
    actions: list[Action] = [prefill(f"prefill{i}", prompt) for i, prompt in enumerate(prompts)]
    actions += [FinishRequests(), Turn("consumer")]
    if fetched < count:
        actions += [HandOff(RequestSpec("decode", prompts[fetched], 2), f"prefill{fetched}"), Outlast()]
    return _pair("nobody comes", [*actions, Turn("producer"), Outlast()], options)


def _too_late(options: EngineOptions) -> Program:
    """The consumer comes when the producer has given up and others have its blocks."""
    first, done, turn, second, drain = hand_over([((1, 3 * BLOCK),)])
    others: list[Action] = []
    for index in range(3):
        others += [Add(RequestSpec(f"other{index}", ((50 + index, 4 * BLOCK + 5),), 2)), FinishRequests()]
    tight = replace(options, shape=replace(options.shape, num_blocks=9))
    return _pair("too late", [first, done, Outlast(), *others, turn, second, drain], tight)


def nobody_comes() -> Family:
    """Prompts that no consumer ever fetches, beside one that is fetched; and one that comes when all is over."""
    examples = (_unfetched(3, 1, _options()), _too_late(_options("v1")))
    # Each of these takes as long as a lease.
    return Family("nobody comes", "ASYNC-19", examples, st.sampled_from(examples))


def _aborted_prefill(steps: int, options: EngineOptions) -> Program:
    """A prompt in chunks of 24 tokens is aborted after some steps; another one shows that hand-offs work."""
    actions: list[Action] = [
        *hand_over([((1, 3 * BLOCK),)]), Turn("producer"),
        prefill("aborted", ((2, 5 * BLOCK),)), *([Step(steps)] if steps else []), Abort("aborted"), Outlast(),
    ]  # fmt: skip
    return _pair("aborted prefill", actions, replace(options, max_num_batched_tokens=24))


def aborted_prefill() -> Family:
    """Aborted before its first step, and amid its prefill: nobody gets what the connector returns."""
    examples = (_aborted_prefill(0, _options("v2")), _aborted_prefill(2, _options("v1")))
    drawn = st.builds(_aborted_prefill, st.integers(0, 3), _RUNNERS)
    return Family("aborted prefill", "FIN-05", examples, drawn)


# -- consumers that need nothing --


def _not_needed(how: str, length: int, options: EngineOptions) -> Program:
    """The consumer has the whole prompt itself, or its request is aborted before it was ever scheduled."""
    prompt: Prompt = ((1, length),)
    warm: list[Action] = []
    if how == "cached":
        # A local hit leaves at least one token to compute, so only with a token behind the prompt it can be complete.
        warm = [Turn("consumer"), Add(RequestSpec("local", ((1, length), (3, BLOCK)))), Drain(), Turn("producer")]
    ends: list[Action] = [Abort("decode0")] if how == "aborted" else []
    first, done, turn, second, _ = hand_over([prompt], first_token=how == "cached")
    actions: list[Action] = [*warm, first, done, turn, second, *ends, Outlast(), Turn("producer"), Outlast()]
    return _pair("not needed", actions, options)


def not_needed() -> Family:
    """A hand-off that the consumer has no use for in the end."""
    examples = (_not_needed("cached", 2 * BLOCK, _options("v2")), _not_needed("aborted", 40, _options("v1")))
    drawn = st.builds(
        _not_needed, st.sampled_from(("cached", "aborted")), st.sampled_from((BLOCK, 3 * BLOCK)), _RUNNERS
    )
    return Family("not needed", "ASYNC-23", examples, drawn)


def _aborted_load(steps: int, length: int, options: EngineOptions) -> Program:
    first, done, turn, second, _ = hand_over([((1, length),)])
    actions = [first, done, turn, second, Step(steps), Abort("decode0"), Drain(), Turn("producer"), Outlast()]
    return _pair("aborted load", actions, options)


def aborted_load() -> Family:
    """Aborted on the consumer's side while its load may be under way."""
    examples = (_aborted_load(1, 3 * BLOCK, _options("v2")), _aborted_load(1, 40, _options("v1")))
    drawn = st.builds(_aborted_load, st.integers(1, 3), _LENGTHS, _RUNNERS)
    return Family("aborted load", "ASYNC-09", examples, drawn)


# -- ends of prefills --


def _stopped(length: int, options: EngineOptions) -> Program:
    """One prompt that ends by its length, and one that a stop token ends."""
    prompts: list[Prompt] = [((1, length),), ((2, length),)]
    _, _, *rest = hand_over(prompts)
    prefills = [prefill(f"prefill{i}", prompt, stops=i > 0) for i, prompt in enumerate(prompts)]
    return _pair("stop token", [*prefills, FinishRequests(), *rest], options)


def stopped() -> Family:
    """A prefill that ends with a stop token."""
    examples = (_stopped(2 * BLOCK + 3, _options("v2")), _stopped(3 * BLOCK, _options("v1")))
    drawn = st.builds(_stopped, _LENGTHS, _RUNNERS)
    return Family("stop token", "FIN-15", examples, drawn, general=hand_off())


def _preempted_at_the_end(steps: int, runner: Runner) -> Program:
    """Asynchronous scheduling on a pool in which a request that generates needs a block of one that has just ended.

    A prompt of 40 tokens fills its third block with 8 tokens more; in that very step the other request's only token
    has to be in flight, so it has to come after 8 steps: the scheduler is one step ahead.
    """
    first, done, turn, second, drain = hand_over([((3, 3 * BLOCK),)])
    options = EngineOptions(runner=runner, async_scheduling=True)
    tight = replace(options, shape=replace(options.shape, num_blocks=7))
    last: list[Action] = [
        Turn("producer"),
        Add(RequestSpec("generates", ((7, 40),), 20)),
        Step(steps),
        prefill("last", ((8, 3 * BLOCK),)),
        FinishRequests(),
        Turn("consumer"),
        HandOff(RequestSpec("decode", ((8, 3 * BLOCK),), 2), "last"),
        Drain(),
    ]
    return _pair("preempted at the end", [first, done, turn, second, drain, *last], tight)


def preempted_at_the_end() -> Family:
    """Preempted while its last token is in flight."""
    examples = tuple(_preempted_at_the_end(8, runner) for runner in RUNNERS)
    return Family("preempted at the end", "PRE-06", examples, st.sampled_from(examples), general=hand_off())


# -- parameters in other words --

#: Empty, meant for somebody else, and incomplete.
STRANGE: tuple[dict[str, Any], ...] = (
    {},
    {"vendor": {"session": [1, "x"]}},
    {"do_remote_decode": True},
    {"do_remote_prefill": False, "do_remote_decode": False},
    {"do_remote_prefill": True},
)


def _strange(options: EngineOptions) -> Program:
    """All on one engine, after a request without parameters. A prefill is aborted, so that nobody keeps it."""
    actions: list[Action] = [Add(RequestSpec("plain", ((1, 40),), 2)), FinishRequests()]
    for index, params in enumerate(STRANGE):
        actions += [Add(RequestSpec(f"r{index}", ((2 + index, 40),), 3, kv_transfer_params=params)), Step(1)]
        actions += [Abort(f"r{index}")] if params.get("do_remote_decode") else [FinishRequests()]
    return _pair("parameters in other words", [*actions, Outlast()], options, BOTH)


def strange_parameters() -> Family:
    """Requests with kv_transfer_params that this connector did not write."""
    examples = (_strange(_options("v2")),)
    return Family("parameters in other words", "MATCH-24", examples, st.sampled_from(examples))


# -- a producer that is gone --


def _gone(silent: bool, options: EngineOptions) -> Program:
    first, done, turn, second, _ = hand_over([((1, 3 * BLOCK),)])
    return _pair("producer gone", [first, done, Leave(silent), turn, second, Outlast()], options)


def _present(program: Program) -> Program:
    actions = [action for action in program.actions if not isinstance(action, Leave)]
    return replace(program, actions=tuple(actions))


def _gone_rule(_: History, finding: Finding) -> str:
    return "FAIL-20" if isinstance(finding.at, WrongBytes) else finding.rule


def producer_gone() -> Family:
    """The producer's process ended, or hangs, before the consumer has fetched anything."""
    examples = (
        _gone(False, _options("v2")),
        _gone(False, replace(_options("v1"), load_failure_policy="fail")),
        _gone(True, _options("v2")),
    )
    return Family(
        "producer gone",
        "LIVE-05",
        examples,
        st.sampled_from(examples),
        "the producer's end",
        _present,
        sort=_gone_rule,
        general=hand_off(),
    )
