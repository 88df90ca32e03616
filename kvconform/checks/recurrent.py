"""Recurrent layers: blocks with one state each; what a wrong state says about how it was stored and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks import hybrid
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.byte_events import WrongBytes
from kvconform.engine.events import DivergentHit, EngineStarted, HookCall
from kvconform.engine.history import History


def rule_of(history: History, finding: Finding) -> str:
    """The rule that a symptom of a model with recurrent layers breaks."""
    if finding.rule == "LAY-01":
        return "LAY-16"
    wrong = _wrong_state(history, finding)
    if wrong is None:
        return hybrid.rule_of(history, finding)
    if any("(of layer" in text for text in wrong.observed):
        return "HMA-03"
    # Bytes that are no state at all are a page that was not copied as it is.
    return "LAY-16" if {held.kind for held in wrong.held} <= {"unknown", "rearranged"} else "HMA-06"


def divergent_hit_rule(history: History, finding: Finding) -> str:
    """The same where only loads behind divergent local hits bring wrong states."""
    wrong = _wrong_state(history, finding)
    completed = wrong is not None and (wrong.engine, wrong.request) in _completed(history)
    return "MATCH-23" if completed else rule_of(history, finding)


def reused_block_rule(history: History, finding: Finding) -> str:
    """The same where states are wrong only if blocks are soon given to others."""
    return rule_of(history, finding) if _wrong_state(history, finding) is None else "META-10"


def _wrong_state(history: History, finding: Finding) -> WrongBytes | None:
    """The first wrong bytes that don't stem from computing on wrong ones, if a recurrent layer has them."""
    first_hand = (e for e in history.of(WrongBytes) if not any("on top of wrong KV" in text for text in e.observed))
    at = next(first_hand, finding.at)
    return at if isinstance(at, WrongBytes) and at.group in _recurrent_groups(history, at.engine) else None


def _recurrent_groups(history: History, engine: int) -> tuple[int, ...]:
    return next((event.recurrent for event in history.of(EngineStarted) if event.engine == engine), ())


def _loads(history: History) -> Iterator[HookCall]:
    recurrent = {event.engine for event in history.of(EngineStarted) if event.recurrent}
    for call in history.calls("update_state_after_alloc"):
        if call.args["num_external_tokens"] > 0 and call.engine in recurrent:
            yield call


def _completed(history: History) -> set[tuple[int, str]]:
    """The requests, with their engines, whose load completed a divergent local hit."""
    diverged = {(event.engine, event.step, event.request) for event in history.of(DivergentHit)}
    return {
        (call.engine, call.args["request"])
        for call in _loads(history)
        if (call.engine, call.step, call.args["request"]) in diverged
    }


def _states(history: History) -> Mapping[str, int]:
    return {"loads with recurrent states": sum(1 for _ in _loads(history))}


def _divergent(history: History) -> Mapping[str, int]:
    return {"loads behind a divergent local hit": len(_completed(history))}


_NO_LOAD = "no external hit was loaded on a model with recurrent layers"
_NO_DIVERGENT_LOAD = (
    "no load came behind a local hit that is deeper in full attention than in recurrent layers: the scheduler leaves "
    "such hits only to a connector that claims supports_divergent_local_hybrid_hits"
)

CHECKS = (
    Check("HMA-06", no_finding, _states, _NO_LOAD),
    Check("META-10", no_finding, _states, _NO_LOAD),
    Check("LAY-16", no_finding, _states, _NO_LOAD),
    Check("MATCH-23", no_finding, _divergent, _NO_DIVERGENT_LOAD),
)
