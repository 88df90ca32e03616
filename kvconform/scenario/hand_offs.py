"""A prompt handed from a producer to a consumer, as plain as can be: what the families about that are made of.

The front-end is that of vLLM's disaggregated-prefill proxies (examples/online_serving/disaggregated_serving, 0.32.0):
the producer gets the prompt with ``do_remote_decode`` and max_tokens=1, the consumer the same prompt under another id
and with the kv_transfer_params that came back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from kvconform.checks.model import Situation
from kvconform.engine.options import EngineOptions, Runner
from kvconform.scenario.family import BLOCK, RUNNERS, Family, Prompt
from kvconform.scenario.program import (
    Action,
    Add,
    Drain,
    FinishRequests,
    HandOff,
    KVRole,
    Program,
    RequestSpec,
    Turn,
)

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


def paired(
    name: str, actions: Sequence[Action], options: EngineOptions | None = None, roles: tuple[KVRole, KVRole] = ROLES
) -> Program:
    """A program for two engines of these options."""
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


def options_of(runner: Runner = "v2") -> EngineOptions:
    """Both engines with this model runner."""
    return EngineOptions(runner=runner)


DRAWN_RUNNERS = st.sampled_from(RUNNERS).map(options_of)
_NEAR = [k * BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1)]
DRAWN_LENGTHS = st.one_of(st.sampled_from(_NEAR), st.integers(1, 4 * BLOCK))
_PAIRS = st.sampled_from((ROLES, BOTH))


# -- the plain hand-off --


def _with_equal_ids(program: Program) -> Program:
    """Both engines get a request under one id, so that an id of this engine is one of the other as well."""
    actions: list[Action] = [
        replace(action, request=replace(action.request, id=action.of)) if isinstance(action, HandOff) else action
        for action in program.actions
    ]
    return replace(program, actions=tuple(actions))


def plain(lengths: Sequence[int], options: EngineOptions, roles: tuple[KVRole, KVRole]) -> Program:
    return paired("hand-off", hand_over([((i, n),) for i, n in enumerate(lengths)]), options, roles)


def hand_off() -> Family:
    """Prompts of every length around block boundaries; the two engines know them by different ids."""
    lengths = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1)
    examples = (
        plain(lengths, options_of("v2"), ROLES),
        plain(lengths, options_of("v1"), BOTH),
        plain((40, 3 * BLOCK), EngineOptions(async_scheduling=True), ROLES),
    )
    drawn = st.builds(plain, st.lists(DRAWN_LENGTHS, min_size=1, max_size=3), DRAWN_RUNNERS, _PAIRS)
    return Family("hand-off", "FIN-12", examples, drawn, "different request ids", _with_equal_ids)


def demonstration() -> tuple[Program, ...]:
    """What shows whether a connector hands off at all."""
    return (plain((2 * BLOCK + 3, 3 * BLOCK), options_of(), ROLES),)


# -- what one engine can show, played by two --


def _before_the_plain_one(general: Family | None) -> Family:
    """The general families of a situation, and the plain hand-off as the most general of them."""
    return hand_off() if general is None else replace(general, general=_before_the_plain_one(general.general))


def as_hand_off(family: Family, examples: Sequence[Program], situation: Situation | None = None) -> Family:
    """``family`` with these programs instead of its own; none but these are drawn."""
    return replace(
        family,
        name="hand-off",
        examples=tuple(examples),
        strategy=st.sampled_from(tuple(examples)),
        explain=None,
        general=_before_the_plain_one(family.general),
        shown=situation,
    )
