"""What the signature suite says: witnesses of legal connectors, texts about broken ones (which: see tests/mutants)."""

from __future__ import annotations

import pytest
from suite_run import SuiteRun, run_suite

from kvconform.verdicts import Verdict

BROKEN = (
    "broken_signature:TwoArguments",
    "broken_signature:LoadWithoutKeywords",
    "import_starts_thread:ImportStartsThread",
    "broken_signature:WorkerNeedsScheduler",
)
LEGAL = ("legal_signature:ExtraKeywords", "legal_signature:StarArguments", "legal_signature:Cached")
# Rules that legal connectors must pass, not only not break.
PASSED = {f"SIG-{number:02}" for number in (1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 13, 15)}


@pytest.fixture(scope="module")
def run() -> SuiteRun:
    """The suite, once, against all connectors."""
    return run_suite("test_signature.py", [*BROKEN, *LEGAL, "legal_signature:BackendIsDown"])


def _name(connector: str) -> str:
    return connector.partition(":")[2]


@pytest.mark.parametrize("connector", LEGAL, ids=_name)
def test_legal_connector_passes_every_rule(run: SuiteRun, connector: str) -> None:
    verdicts = run.verdicts[_name(connector)]
    assert {rule for rule, verdict in verdicts.items() if verdict.verdict is Verdict.PASS} >= PASSED


def test_two_argument_connector_is_refused_in_vllms_own_words(run: SuiteRun) -> None:
    words = "uses deprecated 2-argument constructor signature"
    assert words in " ".join(run.text("TwoArguments", "SIG-02").split())
    assert words in " ".join(run.text("TwoArguments", "SIG-01").split())


def test_connector_without_its_backend_is_inconclusive_in_its_own_words(run: SuiteRun) -> None:
    for rule in ("SIG-01", "SIG-04", "SIG-05", "SIG-08", "SIG-15"):
        assert run.verdict("BackendIsDown", rule) is Verdict.INCONCLUSIVE
        assert "no metadata server at 127.0.0.1:1" in run.text("BackendIsDown", rule)
    assert run.verdict("BackendIsDown", "SIG-06") is Verdict.PASS


def test_recommendations_are_warnings(run: SuiteRun) -> None:
    assert run.verdict("ImportStartsThread", "SIG-12") is Verdict.WARN
    assert "started the thread store-poller" in run.text("ImportStartsThread", "SIG-12")
    assert run.verdict("WorkerNeedsScheduler", "SIG-13") is Verdict.WARN


def test_failure_names_what_vllm_calls_and_what_was_declared(run: SuiteRun) -> None:
    text = " ".join(run.text("LoadWithoutKeywords", "SIG-07").split())
    assert "LoadWithoutKeywords.start_load_kv(forward_context" in text
    assert "scheduler_output=..." in text
    assert "kvconform explain SIG-07" in text
