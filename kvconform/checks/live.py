"""LIVE: the engine stays alive, becomes idle, and holds nothing when it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvconform.checks import (
    asynchronous,
    composition,
    crossing,
    events,
    failures,
    finish,
    match,
    metadata,
    order,
    order_requests,
    producer_consumer,
    roles,
    saving,
    shutdown,
    stats,
    transfer,
    workers,
)
from kvconform.checks.calls import refused_to_go_on
from kvconform.checks.model import Check, Finding
from kvconform.engine.events import Audited, EngineRaised, HookCall, Leaked, NeverIdle, ProgramAction, Tokens
from kvconform.engine.history import History

# Rules whose violation makes vLLM raise: such an exception is theirs, not a second defect.
_EXPLAINING = (
    *match.CHECKS,
    *transfer.CHECKS,
    *crossing.CHECKS,
    *composition.CHECKS,
    *roles.CHECKS,
    *failures.CHECKS,
    *asynchronous.CHECKS,
    *finish.CHECKS,
    *saving.CHECKS,
    *shutdown.CHECKS,
    *stats.CHECKS,
    *events.CHECKS,
    *order.CHECKS,
    *order_requests.CHECKS,
    *metadata.CHECKS,
    *workers.CHECKS,
    *producer_consumer.CHECKS,
)


def _explained(history: History) -> set[tuple[int, int]]:
    """Engines and steps in which another rule was broken."""
    return {(finding.at.engine, finding.at.step) for check in _EXPLAINING for finding in check.find(history)}


def _set_up_anew(history: History) -> set[int]:
    """Engines that were started with other options than the one before."""
    return {event.engine for event in history.of(ProgramAction) if event.action == "another set-up"}


def _raised(history: History) -> Iterator[Finding]:
    for event in history.of(EngineRaised):
        # A first engine that doesn't start is a refusal, which the caller has dealt with; a restarted one has to start,
        # unless it is set up in another way than the one that has filled the store.
        if event.during == "start-up" and (event.engine == 1 or event.engine in history.derived(_set_up_anew)):
            continue
        if (event.engine, event.step) in history.derived(_explained) or refused_to_go_on(history, event):
            continue
        if event.cause_hook is not None:
            observed = f"{event.cause_hook} raised {event.error} ({event.where})"
        else:
            observed = f"vLLM raised {event.error} during {event.during} ({event.where})"
        yield Finding(
            "LIVE-01", "no exception: the engine core guards no connector call", observed, event, symptom=True
        )


def _waited_for(history: History) -> set[int]:
    """The events (by identity) for which a missing completion is the reason."""
    return {id(finding.at) for check in asynchronous.CHECKS for finding in check.find(history)}


def _stuck(history: History) -> Iterator[Finding]:
    for event in history.of(NeverIdle):
        if id(event) in history.derived(_waited_for):
            continue
        waiting = (
            f"these requests never ended: {', '.join(event.unfinished)}"
            if event.unfinished
            else "has_requests() stays True"
        )
        yield Finding(
            "LIVE-02",
            f"an idle engine within {event.waited}",
            waiting,
            event,
            requests=event.unfinished,
            symptom=True,
        )


def _leaked(history: History) -> Iterator[Finding]:
    for event in history.of(Leaked):
        yield Finding("LIVE-03", "nothing is held once every request has ended", f"{event.what}: {event.detail}", event)


def _calls(history: History) -> Mapping[str, int]:
    return {"hook calls": sum(1 for _ in history.of(HookCall))}


def _ended(history: History) -> Mapping[str, int]:
    return {"requests ended": sum(event.finish_reason is not None for event in history.of(Tokens))}


def _audits(history: History) -> Mapping[str, int]:
    return {"audits of an idle engine": sum(1 for _ in history.of(Audited))}


CHECKS = (
    Check("LIVE-01", _raised, _calls, "no hook was called"),
    Check("LIVE-02", _stuck, _ended, "no request ended"),
    Check("LIVE-03", _leaked, _audits, "no engine became idle"),
)
