"""Scenario families for a producer and a consumer: what each owes the other, and what if one of them does not come.

What one engine can show is played by a pair in :mod:`kvconform.scenario.hand_off_situations`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from kvconform.checks import hand_off_situations as shown
from kvconform.checks.failures import stuck_rule, without_peer_rule
from kvconform.checks.hand_offs import kept_rule
from kvconform.checks.model import Finding
from kvconform.checks.transfer import left_untouched, local_hit_rule
from kvconform.engine.byte_events import Arrived, WrongBytes
from kvconform.engine.events import NeverIdle, Outlasted
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions, Runner
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt
from kvconform.scenario.hand_offs import (
    BOTH,
    DRAWN_LENGTHS,
    DRAWN_RUNNERS,
    hand_off,
    hand_over,
    options_of,
    paired,
    prefill,
)
from kvconform.scenario.program import (
    Abort,
    Action,
    Add,
    Drain,
    FinishRequests,
    HandOff,
    Leave,
    Outlast,
    Program,
    RequestSpec,
    Step,
    Turn,
)

# -- block lists of different lengths --


def _unequal(cached: int, rest: int, tail: bool, options: EngineOptions) -> Program:
    """The consumer has ``cached`` tokens of the prompt, or its prompt ends with the first sampled token, or both."""
    prompt: Prompt = ((1, cached), (2, rest)) if cached else ((2, rest),)
    warm: list[Action] = []
    if cached:
        warm = [Turn("consumer"), Add(RequestSpec("local", ((1, cached), (3, 5)))), Drain(), Turn("producer")]
    return paired("unequal lists", [*warm, *hand_over([prompt], first_token=tail)], options)


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


def _unequal_rule(history: History, finding: Finding) -> str:
    """Slots behind a local hit that nothing was written to are left out; others were paired with the wrong ones."""
    left_out = isinstance(finding.at, WrongBytes | Arrived) and left_untouched(finding.at)
    return local_hit_rule(otherwise="LOAD-11")(history, finding) if left_out else "LOAD-11"


def unequal_lists() -> Family:
    """A local hit on the consumer's side, and a first token at the end of its prompt."""
    sizes = ((BLOCK, BLOCK + 3, False), (2 * BLOCK, 2 * BLOCK, False), (0, 2 * BLOCK, True), (2 * BLOCK, BLOCK, True))
    examples = tuple(_unequal(*size, options_of(RUNNERS[i % 2])) for i, size in enumerate(sizes))
    drawn = st.builds(
        _unequal, st.sampled_from((0, BLOCK, 2 * BLOCK, 40)), st.integers(2, 3 * BLOCK), st.booleans(), DRAWN_RUNNERS
    )
    return Family(
        "unequal lists",
        "LOAD-11",
        examples,
        drawn,
        "block lists of different length",
        _equal_lists,
        sort=_unequal_rule,
        general=hand_off(),
        shown=shown.BEHIND_LOCAL,
    )


def _longer_tables(max_tokens: int, length: int, options: EngineOptions) -> Program:
    actions = hand_over([((1, length),)])
    first = prefill("prefill0", ((1, length),), max_tokens)
    return paired("longer tables", [first, *actions[1:]], options)


def _one_token(program: Program) -> Program:
    actions = [
        replace(action, request=replace(action.request, max_tokens=1)) if isinstance(action, Add) else action
        for action in program.actions
    ]
    return replace(program, actions=tuple(actions))


def longer_tables() -> Family:
    """The producer generates some tokens itself, so that its block table goes on behind the prompt."""
    sizes = ((4, 2 * BLOCK), (BLOCK + 2, 2 * BLOCK + 5), (2, 3 * BLOCK))
    examples = tuple(_longer_tables(n, length, options_of(RUNNERS[i % 2])) for i, (n, length) in enumerate(sizes))
    drawn = st.builds(_longer_tables, st.integers(2, 20), DRAWN_LENGTHS, DRAWN_RUNNERS)
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
    return paired("producer goes on", [first, done, *busy, *rest], tight)


def _idle_producer(program: Program) -> Program:
    actions = [a for a in program.actions if not isinstance(a, Add) or a.request.kv_transfer_params is not None]
    return replace(program, actions=tuple(actions))


def producer_goes_on() -> Family:
    """What is held for the consumer stays as it is while the producer computes other requests."""
    examples = (_busy(3 * BLOCK, 3, options_of("v2")), _busy(2 * BLOCK + 5, 3, options_of("v1")))
    drawn = st.builds(_busy, st.integers(1, 4 * BLOCK), st.integers(2, 4), DRAWN_RUNNERS)
    return Family(
        "producer goes on",
        "ASYNC-08",
        examples,
        drawn,
        "other requests on the producer",
        _idle_producer,
        sort=kept_rule,
        general=hand_off(),
    )


def _unfetched(count: int, fetched: int, options: EngineOptions) -> Program:
    prompts: list[Prompt] = [((i, 2 * BLOCK + i),) for i in range(count)]
    actions: list[Action] = [prefill(f"prefill{i}", prompt) for i, prompt in enumerate(prompts)]
    actions += [FinishRequests(), Turn("consumer")]
    if fetched < count:
        actions += [HandOff(RequestSpec("decode", prompts[fetched], 2), f"prefill{fetched}"), Outlast()]
    return paired("nobody comes", [*actions, Turn("producer"), Outlast()], options)


def _too_late(options: EngineOptions) -> Program:
    """The consumer comes when the producer has given up and others have its blocks."""
    first, done, turn, second, drain = hand_over([((1, 3 * BLOCK),)])
    others: list[Action] = []
    for index in range(3):
        others += [Add(RequestSpec(f"other{index}", ((50 + index, 4 * BLOCK + 5),), 2)), FinishRequests()]
    tight = replace(options, shape=replace(options.shape, num_blocks=9))
    return paired("too late", [first, done, Outlast(), *others, turn, second, drain], tight)


def _in_time(program: Program) -> Program:
    """Nobody waits for the end of a hold, and the producer does nothing else in between."""
    actions = [action for action in _idle_producer(program).actions if not isinstance(action, Outlast)]
    return replace(program, actions=tuple(actions))


def _late_rule(history: History, finding: Finding) -> str:
    return stuck_rule(history, finding.at, finding.rule) if isinstance(finding.at, NeverIdle) else finding.rule


def nobody_comes() -> Family:
    """Prompts that no consumer ever fetches, beside one that is fetched; and one that comes when all is over."""
    examples = (_unfetched(3, 1, options_of()), _too_late(options_of("v1")))
    # Each of these takes as long as a lease.
    drawn = st.sampled_from(examples)
    return Family("nobody comes", "ASYNC-19", examples, drawn, "the end of a hold", _in_time, sort=_late_rule)


def _aborted_prefill(steps: int, options: EngineOptions) -> Program:
    """A prompt in chunks of 24 tokens is aborted after some steps; another one shows that hand-offs work."""
    actions: list[Action] = [
        *hand_over([((1, 3 * BLOCK),)]), Turn("producer"),
        prefill("aborted", ((2, 5 * BLOCK),)), *([Step(steps)] if steps else []), Abort("aborted"), Outlast(),
    ]  # fmt: skip
    return paired("aborted prefill", actions, replace(options, max_num_batched_tokens=24))


def aborted_prefill() -> Family:
    """Aborted before its first step, and amid its prefill: nobody gets what the connector returns."""
    examples = (_aborted_prefill(0, options_of("v2")), _aborted_prefill(2, options_of("v1")))
    drawn = st.builds(_aborted_prefill, st.integers(0, 3), DRAWN_RUNNERS)
    return Family("aborted prefill", "FIN-05", examples, drawn)


# -- consumers that need nothing --


def _not_needed(how: str, length: int, options: EngineOptions) -> Program:
    """The consumer has the whole prompt, or must compute it ("scored"), or its request ends before it is scheduled."""
    prompt: Prompt = ((1, length),)
    warm: list[Action] = []
    if how == "cached":
        # A local hit leaves at least one token to compute, so only with a token behind the prompt it can be complete.
        warm = [Turn("consumer"), Add(RequestSpec("local", ((1, length), (3, BLOCK)))), Drain(), Turn("producer")]
    ends: list[Action] = [Abort("decode0")] if how == "aborted" else []
    first, done, turn, second, _ = hand_over([prompt], first_token=how == "cached")
    if how == "scored" and isinstance(second, HandOff):
        second = replace(second, request=replace(second.request, prompt_logprobs=1))
    actions: list[Action] = [*warm, first, done, turn, second, *ends, Outlast(), Turn("producer"), Outlast()]
    return paired("not needed", actions, options)


def not_needed() -> Family:
    """A hand-off that the consumer has no use for in the end."""
    examples = (
        _not_needed("cached", 2 * BLOCK, options_of("v2")),
        _not_needed("scored", 40, options_of("v2")),
        _not_needed("aborted", 40, options_of("v1")),
    )
    drawn = st.builds(
        _not_needed,
        st.sampled_from(("cached", "scored", "aborted")),
        st.sampled_from((BLOCK, 3 * BLOCK)),
        DRAWN_RUNNERS,
    )
    return Family("not needed", "ASYNC-23", examples, drawn)


def _aborted_load(steps: int, length: int, options: EngineOptions) -> Program:
    first, done, turn, second, _ = hand_over([((1, length),)])
    actions = [first, done, turn, second, Step(steps), Abort("decode0"), Drain(), Turn("producer"), Outlast()]
    return paired("aborted load", actions, options)


def aborted_load() -> Family:
    """Aborted on the consumer's side while its load may be under way."""
    examples = (_aborted_load(1, 3 * BLOCK, options_of("v2")), _aborted_load(1, 40, options_of("v1")))
    drawn = st.builds(_aborted_load, st.integers(1, 3), DRAWN_LENGTHS, DRAWN_RUNNERS)
    return Family("aborted load", "ASYNC-09", examples, drawn)


# -- ends of prefills --


def _stopped(length: int, options: EngineOptions) -> Program:
    """One prompt that ends by its length, and one that a stop token ends."""
    prompts: list[Prompt] = [((1, length),), ((2, length),)]
    _, _, *rest = hand_over(prompts)
    prefills = [prefill(f"prefill{i}", prompt, stops=i > 0) for i, prompt in enumerate(prompts)]
    return paired("stop token", [*prefills, FinishRequests(), *rest], options)


def stopped() -> Family:
    """A prefill that ends with a stop token."""
    examples = (_stopped(2 * BLOCK + 3, options_of("v2")), _stopped(3 * BLOCK, options_of("v1")))
    drawn = st.builds(_stopped, DRAWN_LENGTHS, DRAWN_RUNNERS)
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
    return paired("preempted at the end", [first, done, turn, second, drain, *last], tight)


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
    return paired("parameters in other words", [*actions, Outlast()], options, BOTH)


def strange_parameters() -> Family:
    """Requests with kv_transfer_params that this connector did not write."""
    examples = (_strange(options_of("v2")),)
    return Family("parameters in other words", "MATCH-24", examples, st.sampled_from(examples))


# -- a producer that is gone --


def _gone(silent: bool, cached: int, options: EngineOptions) -> Program:
    """With ``cached`` tokens of the prompt in the consumer's own cache."""
    prompt: Prompt = ((1, cached), (2, 3 * BLOCK)) if cached else ((1, 3 * BLOCK),)
    first, done, turn, second, _ = hand_over([prompt])
    warm: list[Action] = []
    if cached:
        warm = [turn, Add(RequestSpec("local", ((1, cached), (3, 5)))), Drain(), Turn("producer")]
    return paired("producer gone", [*warm, first, done, Leave(silent), turn, second, Outlast()], options)


def present(program: Program) -> Program:
    """The same with a producer that stays."""
    actions = [action for action in program.actions if not isinstance(action, Leave)]
    return replace(program, actions=tuple(actions))


def _gone_rule(history: History, finding: Finding) -> str:
    if isinstance(finding.at, Outlasted):
        return without_peer_rule(history, finding.at)
    return "FAIL-20" if isinstance(finding.at, WrongBytes) else finding.rule


def producer_gone() -> Family:
    """The producer's process ended, or hangs, before the consumer has fetched anything."""
    examples = (
        _gone(False, 0, options_of("v2")),
        _gone(False, 2 * BLOCK, replace(options_of("v1"), load_failure_policy="fail")),
        _gone(True, 0, options_of("v2")),
    )
    return Family(
        "producer gone",
        "LIVE-05",
        examples,
        st.sampled_from(examples),
        "the producer's end",
        present,
        sort=_gone_rule,
        general=hand_off(),
    )
