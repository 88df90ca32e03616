"""The roles suite accuses every broken connector of exactly the rules it breaks, and no legal one of anything."""

from __future__ import annotations

import pytest
from suite_run import SuiteRun, run_suite

from kvconform.api import vllm_version
from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

BROKEN: dict[str, set[str]] = {
    "broken_roles:SchedulerReadsBoundMetadata": {"ROLE-01"},
    "broken_roles:SchedulerCountsLayers": {"ROLE-01"},
    "broken_roles:WorkerAsksForRequests": {"ROLE-02"},
    "broken_roles:StatsOfWorkerOnly": {"ROLE-03"},
    "broken_roles:OnlyBuiltForWorkers": {"ROLE-03"},
    "broken_roles:SchedulerHoldsTensors": {"ROLE-04"},
    "broken_roles:PlanInClass": {"ROLE-05"},
    "broken_roles:AnswersInMetadata": {"ROLE-05"},
    "broken_roles:WorkerEmptiesPlan": {"ROLE-05"},
    "broken_roles:LockInMetadata": {"ROLE-06"},
    "broken_roles:ReusedMetadata": {"ROLE-07"},
    "broken_roles:CallbackInReport": {"ROLE-08"},
    "broken_roles:LockInHandshake": {"ROLE-09"},
    "broken_roles:NeedsOnePeer": {"ROLE-10"},
    "broken_roles:UuidInParams": {"ROLE-12"},
    "broken_roles:PinsByHand": {"ROLE-14"},
    "broken_roles:EditsSchedulerOutput": {"META-01"},
    "broken_roles:OneHandshakeOnly": {"ROLE-16"},
}
LEGAL = (
    "legal_roles:NamedStore",
    "legal_roles:PinsThroughPool",
    "legal_roles:LiveRegistry",
    "legal_roles:Handshaking",
)
ALWAYS_SHOWN = {f"ROLE-{number:02}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 14)} | {"META-01"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SuiteRun:
    """The suite, once, against all connectors."""
    return run_suite("test_roles.py", [*BROKEN, *LEGAL], tmp_path_factory.mktemp("run"))


def _name(connector: str) -> str:
    return connector.partition(":")[2]


def _of_this_release(rules: set[str]) -> set[str]:
    version = vllm_version()
    assert version is not None
    return {rule for rule in rules if load_catalogue().rule(rule).applies_to(version)}


@pytest.mark.parametrize("connector", BROKEN, ids=_name)
def test_broken_connector_breaks_exactly_its_rules(run: SuiteRun, connector: str) -> None:
    assert run.broken(_name(connector)) == _of_this_release(BROKEN[connector])


@pytest.mark.parametrize("connector", LEGAL, ids=_name)
def test_legal_connector_is_not_accused_and_passes(run: SuiteRun, connector: str) -> None:
    name = _name(connector)
    assert run.broken(name) == set()
    passed = {rule for rule, verdict in run.verdicts[name].items() if verdict.verdict is Verdict.PASS}
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
