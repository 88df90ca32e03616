"""Hand-made histories: the few events that a check looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvconform.checks import CHECKS_BY_RULE, Finding, examine
from kvconform.engine.byte_events import Compared, Stray, WrongBytes
from kvconform.engine.events import Crossing, EngineRaised, Event, HookCall, Tokens
from kvconform.engine.history import History

LAYER = "model.layers.0.self_attn.attn"


def history(*events: Event) -> History:
    return History(list(events))


def match(
    result: Any, *, request: str = "r1", computed: int = 0, tokens: int = 49, step: int = 1, engine: int = 1
) -> HookCall:
    """A get_num_new_matched_tokens call and its answer."""
    args = {"request": request, "num_computed_tokens": computed, "num_tokens": tokens}
    return HookCall(engine, step, "scheduler", "get_num_new_matched_tokens", args, result)


def alloc(external: int, *, request: str = "r1", step: int = 1, engine: int = 1) -> HookCall:
    args = {"request": request, "block_ids": [[1, 2, 3]], "num_external_tokens": external}
    return HookCall(engine, step, "scheduler", "update_state_after_alloc", args)


def failing(call: HookCall, error: str = "KeyError: 'r1'", where: str = "vendor.py:7 in hook") -> HookCall:
    """The same call, but that the connector raised."""
    return replace(call, result=None, error=error, where=where)


def compared(external: int, *, request: str = "r1", local: int = 0, step: int = 1, engine: int = 1) -> Compared:
    return Compared(engine, step, request, local, external, 2)


def wrong(
    first: int,
    last: int,
    *said: str,
    request: str = "r1",
    layer: str = LAYER,
    step: int = 1,
    engine: int = 1,
    **more: Any,
) -> WrongBytes:
    """Wrong slots [first, last] of one layer, 16 tokens per block."""
    blocks = tuple(range(1 + first // 16, 2 + last // 16))
    fields: dict[str, Any] = {"external": True, "observed": said or ("tokens hold zeros",), **more}
    return WrongBytes(engine, step, request, layer, 0, tuple(range(first, last + 1)), blocks, **fields)


def stray(
    block: int, *owners: str, step: int = 1, slots: tuple[int, ...] = (0, 1), engine: int = 1, **more: Any
) -> Stray:
    fields: dict[str, Any] = {"phase": "while saving", "layer": LAYER, "observed": (), **more}
    return Stray(engine, step, block=block, slots=slots, owners=owners, **fields)


def raised(hook: str | None, *, during: str = "execute_model", step: int = 1, engine: int = 1) -> EngineRaised:
    return EngineRaised(engine, step, during, "RuntimeError: planted", "vendor.py:7 in hook", hook)


def ended(request: str = "r1", step: int = 1) -> Tokens:
    return Tokens(1, step, request, (5,), "length")


def crossed(what: str, error: str | None = None) -> Crossing:
    return Crossing(1, 1, what, 0 if error else 100, error)


def broken(*events: Event) -> list[str]:
    """The rules that the events break, as all checks together see them."""
    return [finding.rule for finding in examine(history(*events)).findings]


def found(rule: str, *events: Event) -> list[Finding]:
    """What one check alone finds, all of it of its own rule."""
    findings = list(CHECKS_BY_RULE[rule].find(history(*events)))
    assert {finding.rule for finding in findings} <= {rule}
    return findings


def witness(rule: str, *events: Event) -> int:
    """How much one check saw that its rule is about."""
    return sum(CHECKS_BY_RULE[rule].witness(history(*events)).values())
