"""RST: what the store may still offer after a reset, and what a reset must not lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.checks.calls import offered
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.history import (
    FINISH_HOOKS,
    CacheReset,
    EngineStarted,
    Event,
    History,
    HookCall,
    ProgramAction,
    Tokens,
)

#: Chances that a prompt gets after a reset to be stored and found again, before it counts as lost.
CHANCES = 3
Prompt = tuple[int, ...]


@dataclass
class _Engine:
    """One engine while its events are read.

    ``admitted`` are the requests that got blocks. ``since`` holds the tokens of requests that were alive at the last
    successful reset or came later: whatever they have computed may be matched. None as long as there was no reset.
    """

    tokens: dict[str, Prompt] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    admitted: set[str] = field(default_factory=set)
    since: dict[str, Prompt] | None = None
    served: set[Prompt] = field(default_factory=set)
    lost: dict[Prompt, int] = field(default_factory=dict)
    found_again: int = 0
    refused: int = 0
    queries: int = 0


def _walk(history: History) -> Iterator[tuple[_Engine, Event, int]]:
    """Every event with what is known by then, and the tokens in front that a match query was promised.

    Nothing for a history without a reset of the connector, as most are: no rule of this chapter is about it.
    """
    if not any(event.connector and not event.inherits for event in history.of(CacheReset)):
        return
    engines: dict[int, _Engine] = {}
    for event in history.events:
        engine = engines.setdefault(event.engine, _Engine())
        promised = 0
        if isinstance(event, ProgramAction) and event.action == "add" and "tokens" in event.detail:
            request = event.detail["request"]
            engine.tokens[request] = tuple(event.detail["tokens"])
            engine.alive.add(request)
        elif isinstance(event, HookCall) and event.hook in FINISH_HOOKS:
            engine.alive.discard(event.args.get("request", ""))
        elif isinstance(event, HookCall) and event.hook == "update_state_after_alloc":
            engine.admitted.add(event.args["request"])
        elif isinstance(event, CacheReset) and event.connector and not event.inherits:
            if _emptied(history, event):
                engine.since = {request: engine.tokens[request] for request in engine.alive}
                engine.lost = dict.fromkeys(engine.served, 0)
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            promised = _promise(event)
        yield engine, event, promised
        if isinstance(event, ProgramAction) and event.action == "add" and engine.since is not None:
            engine.since.setdefault(event.detail["request"], engine.tokens.get(event.detail["request"], ()))


def _emptied(history: History, reset: CacheReset) -> bool:
    """Whether the connector said that this reset has worked: every answer but False does."""
    calls = [call for call in history.calls("reset_cache") if (call.engine, call.step) == (reset.engine, reset.step)]
    return bool(calls) and calls[-1].error is None and calls[-1].result is not False


def _promise(call: HookCall) -> int:
    """Tokens that are computed once the answer to this query is taken, if it promises any; else 0."""
    tokens = offered(call)
    return int(call.args["num_computed_tokens"]) + tokens if tokens else 0


def _common(one: Prompt, other: Prompt) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _answers(history: History) -> Iterator[Finding]:
    for call in history.calls("reset_cache"):
        if call.error is None and call.result is not None and not isinstance(call.result, bool):
            expected = "True or None for success, or the very value False"
            observed = f"reset_cache returned {call.result!r}, which counts as success whatever it was to say"
            yield Finding("RST-01", expected, observed, call)


def _stale(history: History) -> Iterator[Finding]:
    for engine, event, promised in _walk(history):
        if not promised or engine.since is None or not isinstance(event, HookCall):
            continue
        request = event.args["request"]
        own = engine.tokens.get(request, ())
        # The request itself counts once it was scheduled: it may be asking again after a preemption.
        others = [tokens for name, tokens in engine.since.items() if name != request or request in engine.admitted]
        known = max((_common(own, tokens) for tokens in others), default=0)
        if promised > known:
            yield Finding(
                "RST-02",
                f"at most the {known} leading tokens that were computed after the reset",
                f"get_num_new_matched_tokens({request}) promised KV up to token {promised}, stored before the reset",
                event,
                requests=(request,),
            )
            return


def _rediscovery(history: History) -> Iterator[tuple[_Engine, HookCall, Prompt, bool]]:
    """Queries after a reset for prompts that were served before it and computed again since: found or not."""
    for engine, event, promised in _walk(history):
        if not isinstance(event, HookCall) or event.hook != "get_num_new_matched_tokens" or event.error is not None:
            continue
        own = engine.tokens.get(event.args["request"], ())
        if engine.since is None:
            if promised:
                engine.served.add(own)
            continue
        if own in engine.lost and event.args["num_computed_tokens"] == 0:
            engine.lost[own] += 1
            # The first query after the reset has nothing to find.
            if promised or engine.lost[own] > 1:
                yield engine, event, own, promised > 0


def _never_again(history: History) -> Iterator[Finding]:
    found: set[Prompt] = set()
    for engine, query, prompt, again in _rediscovery(history):
        if again:
            found.add(prompt)
        elif prompt not in found and engine.lost[prompt] >= CHANCES:
            request = query.args["request"]
            yield Finding(
                "RST-07",
                f"a hit for {request}, whose prompt was served before the reset and computed again since",
                f"query number {engine.lost[prompt]} for this prompt after the reset was answered {query.result}",
                query,
                requests=(request,),
            )
            return


def _pinned(history: History) -> Iterator[Finding]:
    for event in history.of(CacheReset):
        if event.idle and not event.succeeded and not event.connector:
            yield Finding(
                "RST-06",
                "a local cache reset that succeeds, as no request is left",
                "reset_prefix_cache failed: blocks of the pool are still referenced",
                event,
            )
            return


# -- witnesses -------------------------------------------------------------------------------------------------------


def _resets(history: History) -> Mapping[str, int]:
    own = [event for event in history.of(CacheReset) if event.connector and not event.inherits]
    return {"resets of the connector": len(own)}


def _queried_after(history: History) -> Mapping[str, int]:
    """Prompts that were served before a reset and asked for after it."""
    seen = 0
    for engine, event, _ in _walk(history):
        if not isinstance(event, HookCall) or event.hook != "get_num_new_matched_tokens":
            continue
        own = engine.tokens.get(event.args["request"], ())
        if engine.since is None and _promise(event):
            engine.served.add(own)
        elif engine.since is not None and own in engine.lost:
            seen += 1
    return {"queries after a reset for what was served before it": seen}


def _found_again(history: History) -> Mapping[str, int]:
    return {"prompts found again after a reset": sum(again for *_, again in _rediscovery(history))}


def _amid(history: History) -> Mapping[str, int]:
    busy = [event for event in history.of(CacheReset) if event.connector and not event.inherits and not event.idle]
    return {"resets with requests alive": len(busy)}


def _successes(history: History) -> Mapping[str, int]:
    return {"local resets that succeeded": sum(e.idle and e.succeeded for e in history.of(CacheReset))}


def _paused(history: History) -> Mapping[str, int]:
    paused: dict[int, bool] = {}
    steps = 0
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action.startswith(("pause", "resume")):
            paused[event.engine] = event.action != "resume"
        elif isinstance(event, HookCall) and event.hook == "build_connector_meta":
            steps += paused.get(event.engine, False)
        elif isinstance(event, EngineStarted):
            paused[event.engine] = False
    return {"steps of a paused engine": steps}


def _ended_amid(history: History) -> Mapping[str, int]:
    if not _amid(history)["resets with requests alive"]:
        return {}
    return {"requests ended": sum(event.finish_reason is not None for event in history.of(Tokens))}


_INHERITED = "the connector's cache was not reset: its class inherits reset_cache, which does nothing"
CHECKS = (
    Check("RST-01", _answers, _resets, _INHERITED),
    Check("RST-02", _stale, _queried_after, "nothing that was served before a reset was asked for after it"),
    Check("RST-03", no_finding, _ended_amid, "no connector of its own reset was reset with requests alive"),
    Check("RST-05", no_finding, _paused, "no step was taken while the engine was paused"),
    Check("RST-06", _pinned, _successes, "the local cache of an idle engine was never reset"),
    Check("RST-07", _never_again, _found_again, "no prompt was served before and after a reset"),
)
