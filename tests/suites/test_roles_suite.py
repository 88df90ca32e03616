"""What the roles suite says: witnesses of legal connectors, texts about broken ones (which: see tests/mutants)."""

from __future__ import annotations

import pytest
from suite_run import SuiteRun, run_suite

from kvconform.api import vllm_version
from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

BROKEN = (
    "broken_roles:SchedulerReadsBoundMetadata",
    "broken_roles:SchedulerCountsLayers",
    "broken_roles:SchedulerHoldsTensors",
    "broken_roles:PlanInClass",
    "broken_roles:AnswersInMetadata",
    "broken_roles:ReusedMetadata",
    "broken_roles:UuidInParams",
    "broken_roles:PinsByHand",
    "broken_roles:EditsSchedulerOutput",
)
LEGAL = ("legal_roles:PinsThroughPool", "legal_roles:LiveRegistry", "legal_roles:Handshaking")
ALWAYS_SHOWN = {f"ROLE-{number:02}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 14)} | {"META-01"}


@pytest.fixture(scope="module")
def run() -> SuiteRun:
    """The suite, once, against all connectors."""
    return run_suite("test_roles.py", [*BROKEN, *LEGAL])


def _name(connector: str) -> str:
    return connector.partition(":")[2]


def _of_this_release(rules: set[str]) -> set[str]:
    version = vllm_version()
    assert version is not None
    return {rule for rule in rules if load_catalogue().rule(rule).applies_to(version)}


@pytest.mark.parametrize("connector", LEGAL, ids=_name)
def test_legal_connector_passes(run: SuiteRun, connector: str) -> None:
    passed = {rule for rule, verdict in run.verdicts[_name(connector)].items() if verdict.verdict is Verdict.PASS}
    assert passed >= ALWAYS_SHOWN


def test_rules_that_need_a_capability_pass_where_it_is_used(run: SuiteRun) -> None:
    assert run.verdict("PinsThroughPool", "ROLE-12") is Verdict.PASS
    assert run.verdict("Handshaking", "ROLE-09") is Verdict.PASS
    assert run.verdict("LiveRegistry", "ROLE-10") is Verdict.PASS
    expected = Verdict.PASS if _of_this_release({"ROLE-16"}) else Verdict.NOT_APPLICABLE
    assert run.verdict("Handshaking", "ROLE-16") is expected


def test_failures_say_what_was_missed_and_what_was_changed(run: SuiteRun) -> None:
    assert "its attribute num_layers" in run.text("SchedulerCountsLayers", "ROLE-01")
    assert "bound connector metadata" in run.text("SchedulerReadsBoundMetadata", "ROLE-01")
    assert "kv_transfer_params['remote']['transfer_id'] is of type uuid.UUID" in run.text("UuidInParams", "ROLE-12")
    assert "the reference count of block" in run.text("PinsByHand", "ROLE-14")
    assert "free_encoder_mm_hashes: 0 entries became 1" in " ".join(run.text("EditsSchedulerOutput", "META-01").split())
    assert "self.pages[0]" in run.text("SchedulerHoldsTensors", "ROLE-04")


def test_shared_state_is_told_by_contrast(run: SuiteRun) -> None:
    text = " ".join(run.text("PlanInClass", "ROLE-05").split())
    assert "the same requests on one engine alone are loaded" in text
    text = " ".join(run.text("AnswersInMetadata", "ROLE-05").split())
    assert "The same scenario without separate objects for each role is right" in text


def test_reused_metadata_is_a_warning(run: SuiteRun) -> None:
    assert run.verdict("ReusedMetadata", "ROLE-07") is Verdict.WARN
