"""Capabilities: what the configuration declares has to be seen at work. What is done undeclared is only told."""

from __future__ import annotations

import pytest

from kvconform.checks import Finding
from kvconform.checks.model import BEFORE
from kvconform.conformance import Conformance
from kvconform.outcomes import NotApplicable
from kvconform.scenario.capabilities import DEMONSTRATIONS


@pytest.mark.kvconform_rules("CAP-01")
def test_declared_capabilities_are_seen_at_work(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """Every capability that the connector's configuration declares is seen at work in scenarios that call for it."""
    declared = [name for name in conformance.config.capabilities if name in DEMONSTRATIONS]
    if not declared:
        raise NotApplicable("the configuration declares no capability that a scenario can call for")
    rows = {name: conformance.capability(name) for name in declared}
    findings = [
        Finding("CAP-01", f"{name} at work", f"it is declared; {DEMONSTRATIONS[name].lacking}", BEFORE)
        for name, row in rows.items()
        if not row.exercised
    ]
    witnesses = {f"{name} seen": row.exercised for name, row in rows.items()}
    conformance.conclude(request, findings, {"CAP-01": witnesses}, "no scenario calls for what is declared")
