"""Verdicts: the order of precedence, witnesses, and the way through JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvconform.verdicts import NO_WITNESS, PRECEDENCE, RuleResult, Verdict, aggregate, judge

rule_ids = st.sampled_from(["MATCH-01", "MATCH-02", "LOAD-01"])
targets = st.sampled_from(["a:A", "b:B"])
witnesses: st.SearchStrategy[Mapping[str, int]] = st.dictionaries(st.sampled_from(["hits", "steps"]), st.integers(0, 3))
results = st.builds(
    RuleResult,
    rule=rule_ids,
    target=targets,
    verdict=st.sampled_from(Verdict),
    nodeid=st.text(max_size=10),
    witnesses=witnesses,
    message=st.text(max_size=10),
    duration=st.floats(0, 10),
)


@given(results)
def test_a_result_survives_json(result: RuleResult) -> None:
    assert RuleResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@given(st.lists(results))
def test_the_first_verdict_in_the_order_of_precedence_wins(found: list[RuleResult]) -> None:
    for (target, rule), verdict in aggregate(found).items():
        own = [judge(result) for result in found if (result.target, result.rule) == (target, rule)]
        assert verdict.verdict is next(v for v in PRECEDENCE if any(result.verdict is v for result in own))
        assert verdict.results == tuple(own)
        assert verdict.deciding
        assert sum(verdict.witnesses.values()) == sum(sum(result.witnesses.values()) for result in own)


@given(st.lists(results), st.randoms(use_true_random=False))
def test_the_order_of_results_decides_nothing(found: list[RuleResult], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = aggregate(found), aggregate(shuffled)
    assert {key: (v.verdict, v.witnesses) for key, v in one.items()} == {
        key: (v.verdict, v.witnesses) for key, v in other.items()
    }


@given(st.lists(results))
def test_a_pass_has_a_witness(found: list[RuleResult]) -> None:
    for verdict in aggregate(found).values():
        if verdict.verdict is Verdict.PASS:
            assert any(count > 0 for result in verdict.deciding for count in result.witnesses.values())


def test_every_verdict_has_its_place_in_the_order() -> None:
    assert sorted(PRECEDENCE, key=lambda v: v.name) == sorted(Verdict, key=lambda v: v.name)
    names = "FAIL CRASH TIMEOUT KIT_ERROR WARN PASS INCONCLUSIVE NOT_APPLICABLE"
    assert " ".join(verdict.name for verdict in PRECEDENCE) == names
    assert [v.name for v in PRECEDENCE if v.is_bad] == ["FAIL", "CRASH", "TIMEOUT", "KIT_ERROR"]


@pytest.mark.parametrize("counts", [{}, {"external hits": 0}])
def test_a_pass_without_a_witness_is_inconclusive(counts: dict[str, int]) -> None:
    result = judge(RuleResult("MATCH-01", "a:A", Verdict.PASS, witnesses=counts))
    assert (result.verdict, result.message) == (Verdict.INCONCLUSIVE, NO_WITNESS)
    assert judge(RuleResult("MATCH-01", "a:A", Verdict.PASS, witnesses={"hits": 1})).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("level", "expected"), [("MUST", Verdict.FAIL), ("SHOULD", Verdict.WARN), ("MAY", Verdict.WARN)]
)
def test_only_a_must_can_fail(level: str, expected: Verdict) -> None:
    failed = RuleResult("MATCH-01", "a:A", Verdict.FAIL, message="text")
    assert aggregate([failed], {"MATCH-01": level})["a:A", "MATCH-01"].verdict is expected
    crashed = RuleResult("MATCH-01", "a:A", Verdict.CRASH)
    assert aggregate([crashed], {"MATCH-01": level})["a:A", "MATCH-01"].verdict is Verdict.CRASH
