"""SHUT: the end of an engine, orderly or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.byte_events import Compared, WrongBytes
from kvconform.engine.events import Audited, EngineRaised, EngineStarted, ForeignState, ProgramAction
from kvconform.engine.history import History

_FIRST = ("worker shutdown", "scheduler shutdown")
_SECOND = ("second worker shutdown", "second scheduler shutdown")


def _raised(rule: str, during: tuple[str, ...], expected: str) -> Callable[[History], Iterator[Finding]]:
    def find(history: History) -> Iterator[Finding]:
        # What fails for want of the workers' state fails whenever it is called (ROLE-03).
        foreign = {event.engine for event in history.of(ForeignState) if event.hook == "shutdown"}
        for event in history.of(EngineRaised):
            if event.during in during and event.engine not in foreign:
                yield Finding(rule, expected, f"{event.during} raised {event.error} ({event.where})", event)

    return find


def in_flight_rule(_: History, finding: Finding) -> str:
    """The rule of a symptom that shows after a shutdown amid transfers."""
    return "SHUT-04" if isinstance(finding.at, WrongBytes) else "SHUT-02"


def killed_rule(_: History, finding: Finding) -> str:
    """The rule of a symptom that shows after a kill: a new engine that can't start, or torn data."""
    at = finding.at
    return "SHUT-08" if isinstance(at, EngineRaised) and at.during == "start-up" else "SHUT-03"


def twice_rule(_: History, __: Finding) -> str:
    """The rule of a symptom that shows after a second shutdown only."""
    return "SHUT-06"


def _actions(*names: str) -> Callable[[History], Mapping[str, int]]:
    def witness(history: History) -> Mapping[str, int]:
        return {f"engines: {name}": sum(e.action == name for e in history.of(ProgramAction)) for name in names}

    return witness


def _amid(history: History) -> Mapping[str, int]:
    """Shutdowns of engines that had not become idle."""
    audited, alive = set(), 0
    for event in history.events:
        if isinstance(event, Audited):
            audited.add(event.engine)
        elif isinstance(event, ProgramAction) and event.action == "shutdown":
            alive += event.engine not in audited
    return {"shutdowns with requests under way": alive}


def _after_unclean(*actions: str) -> Callable[[History], Mapping[str, int]]:
    """External tokens compared by an engine that came after an unclean end."""

    def witness(history: History) -> Mapping[str, int]:
        unclean, audited, tokens = False, set(), 0
        for event in history.events:
            if isinstance(event, Audited):
                audited.add(event.engine)
            elif isinstance(event, ProgramAction) and event.action in actions:
                unclean = unclean or event.action == "killed" or event.engine not in audited
            elif isinstance(event, Compared) and unclean and event.engine > 1:
                tokens += event.external_tokens
        return {"tokens loaded from what an unclean end left": tokens}

    return witness


def _starts_after_kill(history: History) -> Mapping[str, int]:
    killed, started = False, 0
    for event in history.events:
        if isinstance(event, ProgramAction):
            killed = killed or event.action == "killed"
        elif isinstance(event, EngineStarted):
            started += killed
    return {"engines started after a kill": started}


CHECKS = (
    Check("SHUT-02", no_finding, _amid, "no engine was shut down with requests under way"),
    Check(
        "SHUT-03", no_finding, _after_unclean("killed"), "a new engine loaded nothing of what a killed one had stored"
    ),
    Check("SHUT-04", no_finding, _after_unclean("shutdown"), "a new engine loaded nothing after an early shutdown"),
    Check(
        "SHUT-05",
        _raised("SHUT-05", _FIRST, "shutdown returns, so that the rest of the engine is cleaned up"),
        _actions("shutdown"),
        "no engine was shut down",
    ),
    Check(
        "SHUT-06",
        _raised("SHUT-06", _SECOND, "a second call of shutdown does nothing"),
        _actions("shutdown again"),
        "no engine was shut down twice",
    ),
    Check("SHUT-08", no_finding, _starts_after_kill, "no engine was started after a kill"),
)
