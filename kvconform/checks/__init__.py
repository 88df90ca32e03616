"""Checks over a recorded history; one module per part of the contract, none knows an engine's insides."""

from __future__ import annotations

from kvconform.checks import (
    asynchronous,
    composition,
    crossing,
    device_order,
    events,
    failures,
    finish,
    hybrid,
    identity,
    known_engine_bugs,
    live,
    match,
    metadata,
    order,
    order_requests,
    preemption,
    producer_consumer,
    recurrent,
    registration,
    remembered,
    reset,
    roles,
    saving,
    shutdown,
    skipping,
    stats,
    transfer,
    workers,
)
from kvconform.checks.hand_off_situations import SITUATIONS
from kvconform.checks.model import Check, Examination, Finding, KitFailure, Situation
from kvconform.engine.events import Event, KitFailed
from kvconform.engine.history import History

ALL_CHECKS: tuple[Check, ...] = (
    *match.CHECKS,
    *transfer.CHECKS,
    *skipping.CHECKS,
    *crossing.CHECKS,
    *composition.CHECKS,
    *roles.CHECKS,
    *failures.CHECKS,
    *reset.CHECKS,
    *shutdown.CHECKS,
    *stats.CHECKS,
    *events.CHECKS,
    *asynchronous.CHECKS,
    *finish.CHECKS,
    *remembered.CHECKS,
    *preemption.CHECKS,
    *saving.CHECKS,
    *device_order.CHECKS,
    *order.CHECKS,
    *order_requests.CHECKS,
    *metadata.CHECKS,
    *workers.CHECKS,
    *hybrid.CHECKS,
    *recurrent.CHECKS,
    *identity.CHECKS,
    *producer_consumer.CHECKS,
    *registration.CHECKS,
    *live.CHECKS,
)
CHECKS_BY_RULE: dict[str, Check] = {check.rule: check for check in ALL_CHECKS}
#: All that a family may have to show, by the name that a case file gives.
SITUATIONS_BY_NAME: dict[str, Situation] = {situation.name: situation for situation in SITUATIONS}


# An answer that breaks one of these leaves the scheduler in a state in which nothing later proves anything: negative
# computed tokens, an assertion half-way through schedule(), and so on (contract section 3; Scheduler.schedule, 0.32.0).
_ALWAYS_TOLD = frozenset(check.rule for check in match.CHECKS)
_UNDERMINING = _ALWAYS_TOLD | asynchronous.UNDERMINING | composition.UNDERMINING


def examine(history: History, release: str = "") -> Examination:
    """Run every check over ``history``.

    Args:
        history: what happened.
        release: of the vLLM that it happened on, whose known defects are not held against the connector; empty for a
            history to which none apply.

    Raises:
        KitFailure: the kit itself failed there, and nothing from before that explains it.
    """
    findings = [finding for check in ALL_CHECKS for finding in check.find(history)]
    failed = next(history.of(KitFailed), None)
    if failed is not None:
        findings = _before(failed, history, findings)
        if not findings:
            raise KitFailure(f"{failed.error} during {failed.during} ({failed.where})\n{failed.trace}")
    met = known_engine_bugs.first_met(history, release)
    if met is not None:
        return _until(met, history, findings, release)
    witnesses = {check.rule: check.witness(history) for check in ALL_CHECKS}
    witnesses |= {situation.name: situation.witness(history) for situation in SITUATIONS}
    return Examination(history, tuple(_sound(history, findings)), witnesses)


def _until(met: known_engine_bugs.Met, history: History, findings: list[Finding], release: str) -> Examination:
    """What stands of a history that shows a defect of vLLM: findings from before it."""
    order = {id(event): index for index, event in enumerate(history.events)}
    end = order[id(met.at)]
    before = _before(met.at, history, findings)
    after = [finding for finding in findings if order[id(finding.at)] >= end]
    return Examination(
        history,
        tuple(_sound(history, before)),
        {check.rule: dict.fromkeys(check.witness(history), 0) for check in ALL_CHECKS},
        engine_bug=f"the scenario met a known defect of vLLM {release} ({met.bug.id}): {met.bug.sentence}",
        excused=tuple(dict.fromkeys(finding.rule for finding in after)),
        excused_symptom=any(finding.symptom for finding in after),
    )


def _before(at: Event, history: History, findings: list[Finding]) -> list[Finding]:
    order = {id(event): index for index, event in enumerate(history.events)}
    return [finding for finding in findings if order[id(finding.at)] < order[id(at)]]


def _sound(history: History, findings: list[Finding]) -> list[Finding]:
    """Findings without those that only follow from an answer that undermined the engine."""
    order = {id(event): index for index, event in enumerate(history.events)}
    undermined: dict[int, int] = {}
    for finding in findings:
        if finding.rule in _UNDERMINING:
            at = order[id(finding.at)]
            undermined[finding.at.engine] = min(at, undermined.get(finding.at.engine, at))
    return [
        finding
        for finding in findings
        if finding.rule in _ALWAYS_TOLD or order[id(finding.at)] <= undermined.get(finding.at.engine, len(order))
    ]


__all__ = ["ALL_CHECKS", "CHECKS_BY_RULE", "SITUATIONS_BY_NAME", "Check", "Examination", "Finding", "examine"]
