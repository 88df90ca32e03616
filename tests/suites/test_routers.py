"""Hand-offs that a router names: the producer returns nothing, and the consumer is told where to look."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ODD = Path(__file__).parents[1] / "odd"
SETTINGS = f"""
connector = "{ODD / "routed.py"}:Routed"
engine_env = {{ ROUTED_PORT = "{{port}}" }}
peer_timeout = 3.0
kv_connector_extra_config = {{ registry = "{{dir}}", lease_seconds = 3.0, peer_timeout = 2.0 }}
"""
ROUTER = """
producer_params = { transfer_id = "{transfer}" }

[consumer_params]
do_remote_prefill = true
transfer_id = "{transfer}"
where = "{producer}-{producer:ROUTED_PORT}"
"""
TESTS = "producer_consumer or hand_offs"


def verdicts(pytester: pytest.Pytester, settings: str, *options: str) -> dict[str, str]:
    (pytester.path / "kit.toml").write_text(settings)
    pytester.runpytest_subprocess(
        "--kvconform-config=kit.toml", "--kvconform-engine=vllm", "--kvconform-report=report.json", *options
    )
    report = json.loads((pytester.path / "report.json").read_text())
    return {rule["id"]: rule["verdict"] for target in report["targets"] for rule in target["rules"]}


def test_what_a_router_makes_up_reaches_both_sides(pytester: pytest.Pytester) -> None:
    found = verdicts(pytester, SETTINGS + ROUTER, "-k", TESTS, "-n", "2")
    assert not {rule for rule, verdict in found.items() if verdict in ("fail", "warn", "timeout", "crash", "kit error")}
    for rule in ("FIN-12", "FIN-15", "MATCH-10", "ASYNC-23", "LOAD-01", "LIVE-05"):
        assert found[rule] == "pass", rule
    # What would be returned is not.
    assert found["ROLE-12"] == found["FIN-04"] == "inconclusive"


def test_without_the_router_nothing_is_handed_off_and_nobody_is_accused(pytester: pytest.Pytester) -> None:
    found = verdicts(pytester, SETTINGS, "-k", "different_ids")
    assert "fail" not in found.values()
    assert found["FIN-12"] == "not applicable"
