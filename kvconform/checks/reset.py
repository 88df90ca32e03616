"""RST: what the store may still offer after a reset, and what a reset must not lose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq

from kvconform.checks.calls import is_answer, offered
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.events import FINISH_HOOKS, CacheReset, HookCall, ProgramAction, Tokens
from kvconform.engine.history import History

#: Chances that a prompt gets after a reset to be stored and found again, before it counts as lost.
CHANCES = 3
Prompt = tuple[int, ...]
#: With whatever else determines its KV: an adapter, a salt, items.
Whole = tuple[str, Prompt]


@dataclass
class _Engine:
    """One engine while its events are read.

    ``admitted`` are the requests that got blocks. ``since`` holds the requests that were alive at the last successful
    reset or came later, with their tokens: whatever they have computed may be matched. None as long as there was no
    reset. ``lost`` has what was ``served`` before, with the requests that have got an answer about it since then.

    Adapters and salts are left out of ``since``: who mixes them up breaks MATCH-17, with or without a reset.
    """

    tokens: dict[str, Prompt] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    admitted: set[str] = field(default_factory=set)
    since: list[tuple[str, Prompt]] | None = None
    served: set[Whole] = field(default_factory=set)
    lost: dict[Whole, set[str]] = field(default_factory=dict)

    def prompt(self, query: HookCall) -> Prompt:
        """The tokens of the request that a match query is about."""
        return self.tokens.get(query.args["request"], ())

    def whole(self, query: HookCall) -> Whole:
        """What determines the KV of the request that a match query is about."""
        return self.identities.get(query.args["request"], ""), self.prompt(query)

    def reset(self) -> None:
        """The connector's cache was emptied."""
        self.since = [(request, self.tokens[request]) for request in self.alive]
        self.lost = {served: set() for served in self.served}


def _queries(history: History) -> Iterator[tuple[_Engine, HookCall, int]]:
    """Every match query with what is known by then, and the tokens in front that its answer promised.

    Nothing for a history without a reset of the connector, as most are: no rule of this chapter is about it.
    """
    if not any(event.connector for event in history.of(CacheReset)):
        return
    engines: dict[int, _Engine] = defaultdict(_Engine)
    for event in history.events:
        engine = engines[event.engine]
        if isinstance(event, ProgramAction) and event.action == "add":
            request, tokens = event.detail["request"], tuple(event.detail["tokens"])
            engine.tokens[request] = tokens
            engine.identities[request] = event.detail.get("identity", "")
            engine.alive.add(request)
            if engine.since is not None:
                engine.since.append((request, tokens))
        elif isinstance(event, CacheReset) and event.connector and not event.inherits and _emptied(history, event):
            engine.reset()
        elif isinstance(event, HookCall) and event.hook in FINISH_HOOKS:
            engine.alive.discard(event.args["request"])
        elif isinstance(event, HookCall) and event.hook == "update_state_after_alloc":
            engine.admitted.add(event.args["request"])
        elif isinstance(event, HookCall) and event.hook == "get_num_new_matched_tokens":
            promised = _promise(event)
            if promised:
                engine.served.add(engine.whole(event))
            yield engine, event, promised


def _emptied(history: History, reset: CacheReset) -> bool:
    """Whether the connector said that this reset has worked: every answer but False does."""
    calls = [call for call in history.calls("reset_cache") if (call.engine, call.step) == (reset.engine, reset.step)]
    return bool(calls) and calls[-1].error is None and calls[-1].result is not False


def _promise(call: HookCall) -> int:
    """Tokens that are computed once the answer to this query is taken, if it promises any; else 0."""
    tokens = offered(call)
    return int(call.args["num_computed_tokens"]) + tokens if tokens else 0


def _common(one: Prompt, other: Prompt) -> int:
    """How many tokens two prompts have in common at their front."""
    return sum(takewhile(bool, map(eq, one, other)))


def _answers(history: History) -> Iterator[Finding]:
    for call in history.calls("reset_cache"):
        if call.error is None and call.result is not None and not isinstance(call.result, bool):
            expected = "True or None for success, or the very value False"
            observed = f"reset_cache returned {call.result!r}, which counts as success whatever it was to say"
            yield Finding("RST-01", expected, observed, call)


def _stale(history: History) -> Iterator[Finding]:
    for engine, query, promised in _queries(history):
        if engine.since is None:
            continue
        request, own = query.args["request"], engine.prompt(query)
        # The request itself counts once it was scheduled: it may be asking again after a preemption.
        others = [tokens for name, tokens in engine.since if name != request or request in engine.admitted]
        known = max((_common(own, tokens) for tokens in others), default=0)
        if promised > known:
            yield Finding(
                "RST-02",
                f"at most the {known} leading tokens that were computed after the reset",
                f"get_num_new_matched_tokens({request}) promised KV up to token {promised}, stored before the reset",
                query,
                requests=(request,),
            )
            return


def _rediscovery(history: History) -> Iterator[tuple[HookCall, int, bool]]:
    """Answers after a reset to requests for prompts that were served before it: how many requests have got one for that
    prompt, and whether it was found; from then on it is not lost. To put an answer off is none.
    """
    for engine, query, promised in _queries(history):
        own = engine.whole(query)
        if not is_answer(query):
            continue
        if own in engine.lost and query.args["num_computed_tokens"] == 0:
            engine.lost[own].add(query.args["request"])
            yield query, len(engine.lost[own]), promised > 0
            if promised:
                del engine.lost[own]


def _never_again(history: History) -> Iterator[Finding]:
    for query, number, again in _rediscovery(history):
        if not again and number >= CHANCES:
            request = query.args["request"]
            yield Finding(
                "RST-07",
                f"a hit for {request}, whose prompt was served before the reset and computed again since",
                f"request number {number} for this prompt after the reset was answered {query.result}",
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
    """Queries after a reset for prompts that were served before it."""
    asked = sum(engine.whole(query) in engine.lost for engine, query, _ in _queries(history))
    return {"queries after a reset for what was served before it": asked}


def _found_again(history: History) -> Mapping[str, int]:
    return {"prompts found again after a reset": sum(again for _, _, again in _rediscovery(history))}


def _amid(history: History) -> Mapping[str, int]:
    busy = [event for event in history.of(CacheReset) if event.connector and not event.inherits and not event.idle]
    return {"resets with requests alive": len(busy)}


def _successes(history: History) -> Mapping[str, int]:
    return {"local resets that succeeded": sum(e.idle and e.succeeded for e in history.of(CacheReset))}


def _paused(history: History) -> Mapping[str, int]:
    paused: set[int] = set()
    steps = 0
    for event in history.events:
        if isinstance(event, ProgramAction) and event.action.startswith("pause"):
            paused.add(event.engine)
        elif isinstance(event, ProgramAction) and event.action == "resume":
            paused.discard(event.engine)
        elif isinstance(event, HookCall) and event.hook == "build_connector_meta":
            steps += event.engine in paused
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
