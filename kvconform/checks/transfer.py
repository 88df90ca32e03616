"""LOAD and ALLOC: the bytes that a load delivers, and the places where it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.calls import LOADING_HOOKS, refused_to_go_on
from kvconform.checks.model import Check, Finding
from kvconform.engine.byte_events import Arrived, Compared, Stray, WrongBytes
from kvconform.engine.events import EngineRaised
from kvconform.engine.history import History
from kvconform.kvcache.provenance import runs, span


def _spans(positions: tuple[int, ...]) -> str:
    return ", ".join(span(first, last) for first, last in runs(positions))


def left_untouched(event: WrongBytes | Arrived) -> bool:
    """Whether wrong slots are as their own blocks were handed out: nothing was loaded, whatever had been stored."""
    own = tuple(f"poison of block {block} " for block in event.blocks)
    return any(held.what.startswith(own) for held in event.held)


def _wrong_external(history: History) -> list[WrongBytes]:
    """The first time that each loaded slot was found wrong, unless the connector reported the load as failed."""
    seen: set[tuple[int, str, str]] = set()
    found = []
    for event in history.of(WrongBytes):
        key = (event.engine, event.request, event.layer)
        if event.external and not event.reported_failed and key not in seen:
            seen.add(key)
            found.append(event)
    return found


def _delivered(history: History) -> Iterator[Finding]:
    wrong = _wrong_external(history)
    by_request: dict[tuple[int, str], list[WrongBytes]] = {}
    for event in wrong:
        by_request.setdefault((event.engine, event.request), []).append(event)
    for (_, request), events in by_request.items():
        first = events[0]
        layers = f"layer {first.layer}" + (f" and {len(events) - 1} more" if len(events) > 1 else "")
        yield Finding(
            "LOAD-01",
            f"{request}'s {_spans(first.positions)} as they were computed when they were stored",
            f"after the load, in {layers}, block(s) {', '.join(map(str, first.blocks))}: {first.observed[0]}",
            first,
            details=(*first.observed[1:], *_hints(first)),
            requests=(request,),
            symptom=True,
        )
    for raised in history.of(EngineRaised):
        if refused_to_go_on(history, raised):
            continue
        if raised.cause_hook in LOADING_HOOKS and _promised(history, raised):
            promise = ", ".join(
                f"{tokens} tokens of {request}" for request, tokens in _promised(history, raised).items()
            )
            yield Finding(
                "LOAD-01",
                f"{raised.cause_hook} delivers the {promise} that get_num_new_matched_tokens promised",
                f"{raised.cause_hook} raised {raised.error} ({raised.where})",
                raised,
                requests=tuple(_promised(history, raised)),
                symptom=True,
            )
    if not wrong:
        yield from _shared_wrong(history)


def _hints(event: WrongBytes) -> tuple[str, ...]:
    """What a particular kind of wrong bytes suggests."""
    if all("everywhere" in text for text in event.observed):
        return (
            (
                "(One constant in every slot. A connector that fills dummies by design, as for benchmarks, declares "
                'capabilities = ["dummy-fill"] in its configuration and is not judged by its bytes.)'
            ),
        )
    if all("poison" in text for text in event.observed):
        return ("(Nothing was loaded although the tokens were promised, or it was loaded into other blocks.)",)
    return ()


def _promised(history: History, at: EngineRaised) -> dict[str, int]:
    """Loads that the scheduler committed to in this step: request -> external tokens."""
    return {
        call.args["request"]: call.args["num_external_tokens"]
        for call in history.calls("update_state_after_alloc")
        if (call.engine, call.step) == (at.engine, at.step) and call.args["num_external_tokens"] > 0
    }


def _shared_wrong(history: History) -> Iterator[Finding]:
    """Slots that nobody loaded and that are wrong all the same, where no stray write explains them."""
    if any(True for _ in history.of(Stray)):
        return
    for event in history.of(WrongBytes):
        # Where no load was wrong, a wrong slot of one was reported as failed.
        if not event.reported_failed:
            yield Finding(
                "LOAD-01",
                f"{event.request}'s {_spans(event.positions)} as computed",
                f"in layer {event.layer}, block(s) {', '.join(map(str, event.blocks))}: {event.observed[0]}",
                event,
                details=event.observed[1:],
                requests=(event.request,),
                symptom=True,
            )
            return


def _stray(history: History, rule: str) -> Iterator[Finding]:
    seen: set[tuple[int, int, int]] = set()
    for write in history.of(Stray):
        shared = len(write.owners) > 0
        key = (write.engine, write.step, write.block)
        if write.held or write.barred or (rule == "ALLOC-02") != shared or key in seen:
            continue
        seen.add(key)
        yield Finding(
            rule,
            "blocks that no load is to fill keep their content"
            if shared
            else "only slots of the load's own blocks change",
            f"{place(write)} changed {write.phase}" + (f": {write.observed[0]}" if write.observed else ""),
            write,
            details=write.observed[1:],
            requests=write.owners,
            symptom=True,
        )


def place(write: Stray) -> str:
    """Where a stray write went, in words."""
    if write.block == 0:
        return f"block 0, the null block, in layer {write.layer}"
    if write.block == -1:
        return write.layer
    slots = ", ".join(span(first, last, "slot") for first, last in runs(write.slots))
    owner = f", KV of {' and '.join(write.owners)}" if write.owners else ", which no request owns"
    return f"block {write.block} {slots} of layer {write.layer}{owner},"


def _unowned(history: History) -> Iterator[Finding]:
    return _stray(history, "LOAD-03")


def _computed(history: History) -> Iterator[Finding]:
    return _stray(history, "ALLOC-02")


def external_tokens(history: History) -> int:
    """External tokens that were compared with the oracle, counted once per request and engine."""
    most: dict[tuple[int, str], int] = {}
    for event in history.of(Compared):
        key = (event.engine, event.request)
        most[key] = max(most.get(key, 0), event.external_tokens)
    return sum(most.values())


def _compared(history: History) -> Mapping[str, int]:
    return {"external tokens compared": external_tokens(history)}


def _loads(history: History) -> Mapping[str, int]:
    loads = sum(call.args["num_external_tokens"] > 0 for call in history.calls("update_state_after_alloc"))
    return {"loads audited": loads}


def _behind_local(history: History) -> list[tuple[int, str]]:
    """The requests (with their engines) of loads that came on top of a local hit."""
    local: dict[tuple[int, str], int] = {}
    found = []
    for call in history.calls("get_num_new_matched_tokens", "update_state_after_alloc"):
        key = (call.engine, call.args["request"])
        if call.hook == "get_num_new_matched_tokens":
            local[key] = call.args["num_computed_tokens"]
        elif call.args["num_external_tokens"] > 0 and local.get(key, 0) > 0:
            found.append(key)
    return found


def _loads_behind_local(history: History) -> Mapping[str, int]:
    return {"loads behind a local hit": len(history.derived(_behind_local))}


def local_hit_rule(otherwise: str) -> Callable[[History, Finding], str]:
    """The rule of a symptom that shows beside local hits only; what was computed on wrong KV is a consequence."""

    def rule(history: History, finding: Finding) -> str:
        if any(stray.owners and not stray.held for stray in history.of(Stray)):
            return "ALLOC-02"
        first_hand = (e for e in history.of(WrongBytes) if not any("on top of wrong KV" in text for text in e.observed))
        at = next(first_hand, finding.at)
        behind = not isinstance(at, WrongBytes) or (at.engine, at.request) in history.derived(_behind_local)
        return "ALLOC-01" if behind else otherwise

    return rule


CHECKS = (
    Check("LOAD-01", _delivered, _compared, "no external hit was loaded, so no loaded byte could be compared"),
    Check("LOAD-03", _unowned, _loads, "no load was committed to"),
    Check("ALLOC-02", _computed, _loads_behind_local, "no load came on top of a local hit"),
)
