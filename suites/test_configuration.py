"""Configuration: where a connector takes its options from."""

from __future__ import annotations

import pytest

from kvconform.checks import configuration
from kvconform.conformance import Conformance


@pytest.mark.kvconform_rules("CFG-02")
def test_options_come_from_the_extra_configuration(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The connector takes its options from kv_connector_extra_config, not from attributes of KVTransferConfig."""
    _conclude(conformance, request, "CFG-02")


@pytest.mark.kvconform_rules("CFG-03")
def test_removed_fields_are_not_read(conformance: Conformance, request: pytest.FixtureRequest) -> None:
    """The connector does not read fields that KVTransferConfig has lost."""
    conformance.demand("CFG-03")
    _conclude(conformance, request, "CFG-03")


def _conclude(conformance: Conformance, request: pytest.FixtureRequest, rule: str) -> None:
    seen = conformance.observation
    findings = [finding for finding in configuration.misplaced(seen) if finding.rule == rule]
    witnesses = {rule: {"roles built": configuration.built(seen)}}
    conformance.conclude(request, findings, witnesses, f"no instance could be built: {seen.obstacle}")
