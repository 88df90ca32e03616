"""What a report holds: every rule of the release, and openly what is missing."""

from __future__ import annotations

import random

import pytest
from making import EXPECTED, MUSTS, SHOULDS, TARGET, entry, everything, facts_of, make, result, seen

from kvconform.report.building import MAX_MESSAGES, build_document, expected_rules
from kvconform.report.document import BAD, NOT_RUN, UNCHECKED, VERDICTS, Environment, headline
from kvconform.rules import NO_TEST, load_catalogue
from kvconform.verdicts import Verdict


def test_every_rule_of_the_release_is_there_in_the_catalogues_order() -> None:
    (target,) = make([result(MUSTS[0], Verdict.PASS)]).targets
    assert [one.id for one in target.rules] == EXPECTED
    assert target.other_rules == ()
    assert {one.level for one in target.rules} == {"MUST", "SHOULD", "MAY"}


@pytest.mark.parametrize("release", [None, "not a version", "0.0.1"])
def test_where_the_release_is_unknown_every_rule_is_expected(release: str | None) -> None:
    assert expected_rules(load_catalogue(), release) == load_catalogue().rules
    assert len(expected_rules(load_catalogue(), "0.32.0")) < len(load_catalogue().rules)


def test_the_report_has_every_verdict() -> None:
    assert set(everything().counts()) == set(VERDICTS)


def test_a_rule_without_a_test_is_unchecked_and_says_why() -> None:
    document = make([result(MUSTS[0], Verdict.PASS)])
    told = next(rule for rule in load_catalogue() if rule.unchecked and rule.id in EXPECTED)
    assert (entry(document, told.id).verdict, entry(document, told.id).reason) == (
        UNCHECKED,
        str(told.unchecked).rstrip("."),
    )
    assert (entry(document, MUSTS[1]).verdict, entry(document, MUSTS[1]).reason) == (UNCHECKED, NO_TEST)


@pytest.mark.parametrize(
    ("state", "facts", "reason"),
    [
        ("deselected", {"deselected_by": "-k 'hit'"}, "its tests were deselected (-k 'hit')"),
        ("deselected", {}, "its tests were deselected"),
        ("not run", {"stopped_by": "Ctrl-C"}, "its tests did not run: Ctrl-C"),
        ("not run", {}, "its tests did not run"),
        ("not run", {"unusable": {TARGET: "no backend"}}, "the connector could not be tested"),
    ],
)
def test_a_rule_whose_tests_did_not_run_says_why(state: str, facts: dict[str, object], reason: str) -> None:
    document = make([], [seen(MUSTS[0], state)], **facts)
    assert (entry(document, MUSTS[0]).verdict, entry(document, MUSTS[0]).reason) == (NOT_RUN, reason)
    assert entry(document, MUSTS[0]).missing_tests == (f"test_x.py::test_{MUSTS[0]}",)
    assert document.run.partial


def test_a_rule_of_a_suite_that_was_not_collected_is_not_run_and_not_unchecked() -> None:
    document = make([], shipped={"test_a.py::test_b": (MUSTS[0],)}, not_collected_by="tests were named")
    assert entry(document, MUSTS[0]).verdict == NOT_RUN
    assert entry(document, MUSTS[0]).reason == "its tests were not collected: tests were named"
    assert [reason.kind for reason in document.run.partial_reasons] == ["not collected"]


def test_a_verdict_that_rests_on_a_part_of_the_tests_names_the_others() -> None:
    tests = [seen(MUSTS[0]), seen(MUSTS[0], "not run", nodeid="test_x.py::test_other")]
    document = make([result(MUSTS[0], Verdict.PASS)], tests)
    assert entry(document, MUSTS[0]).verdict == "pass"
    assert entry(document, MUSTS[0]).tests == (f"test_x.py::test_{MUSTS[0]}",)
    assert entry(document, MUSTS[0]).missing_tests == ("test_x.py::test_other",)


def test_a_skipped_test_is_missing_although_it_has_a_reason() -> None:
    document = make([result(MUSTS[0], Verdict.INCONCLUSIVE, message="no disk")], [seen(MUSTS[0], "skipped")])
    assert entry(document, MUSTS[0]).messages == ("no disk",)
    assert entry(document, MUSTS[0]).tests == ()
    assert entry(document, MUSTS[0]).missing_tests == (f"test_x.py::test_{MUSTS[0]}",)


def test_a_whole_run_is_not_partial() -> None:
    document = make([result(MUSTS[0], Verdict.PASS)], shipped={})
    assert not document.run.partial
    assert document.run.partial_reasons == ()


def test_the_reasons_for_a_partial_run_are_sentences() -> None:
    tests = [seen("A", "deselected"), seen("B", "not run"), seen("C", "skipped"), seen("D", "skipped", nodeid="d")]
    document = make(
        [],
        tests,
        shipped={"test_a.py::test_b": (), "test_a.py::test_c": ()},
        unusable={"vllm:Nope": "vLLM has none."},
        deselected_by="-k 'x'",
        stopped_by="Ctrl-C",
        skip_reasons=("no disk", "no disk", "no net"),
        broken_files=("test_broken.py",),
        not_collected_by="1 file could not be collected",
    )
    assert [reason.sentence for reason in document.run.partial_reasons] == [
        "1 connector could not be tested: vllm:Nope",
        "1 file could not be collected: test_broken.py",
        "none of the 2 tests of the suites was collected: 1 file could not be collected",
        "1 test was deselected (-k 'x')",
        "1 test did not run: Ctrl-C",
        "2 tests were skipped: no disk; no net",
    ]
    assert document.run.tests.collected == 3


def test_the_order_of_the_tests_does_not_matter() -> None:
    rules = [*MUSTS[:6], *MUSTS[:6]]
    verdicts = [Verdict.FAIL, Verdict.PASS, Verdict.INCONCLUSIVE]
    results = [
        result(rule, verdicts[i % 3], nodeid=f"test_{i}", message=f"text {i}", witnesses={"b": i, "a": 1})
        for i, rule in enumerate(rules)
    ]
    facts = facts_of(results)
    shuffled_results, shuffled_tests = list(facts.results), list(facts.tests)
    random.Random(1).shuffle(shuffled_results)
    random.Random(2).shuffle(shuffled_tests)
    assert facts_of(shuffled_results).results != facts.results
    assert make(results) == make(shuffled_results, shuffled_tests)


def test_other_rules_stand_apart() -> None:
    old = next(rule.id for rule in load_catalogue() if not rule.applies_to("0.32.0"))
    results = [result("ACME-1", Verdict.FAIL), result(old, Verdict.NOT_APPLICABLE), result(MUSTS[0], Verdict.PASS)]
    (target,) = make(results).targets
    assert [(one.id, one.level is None) for one in target.other_rules] == [(old, False), ("ACME-1", True)]
    assert [one.id for one in target.rules] == EXPECTED


def test_tests_without_a_connector_stand_apart() -> None:
    document = make([result(MUSTS[0], Verdict.PASS, target="")])
    assert [one.id for one in document.without_target] == [MUSTS[0]]
    assert entry(document, MUSTS[0]).verdict == UNCHECKED


def test_the_verdict_keeps_what_it_rests_on() -> None:
    results = [
        result(MUSTS[0], Verdict.PASS, nodeid="test_b", witnesses={"hits": 2, "misses": 0}),
        result(MUSTS[0], Verdict.PASS, nodeid="test_a", witnesses={"hits": 3}),
    ]
    found = entry(make(results), MUSTS[0])
    assert found.witnesses == {"hits": 5}
    assert found.tests == ("test_a", "test_b")
    assert found.duration == 1.0


def test_many_texts_are_counted_and_a_long_one_is_cut() -> None:
    results = [
        result(MUSTS[0], Verdict.FAIL, nodeid=f"test_{i:02}", message=f"text {i}") for i in range(MAX_MESSAGES + 3)
    ]
    results.append(result(MUSTS[1], Verdict.FAIL, message="begin" + "x" * 5_000_000 + "end"))
    document = make(results)
    assert len(entry(document, MUSTS[0]).messages) == MAX_MESSAGES
    assert entry(document, MUSTS[0]).messages_cut == 3
    (text,) = entry(document, MUSTS[1]).messages
    assert len(text) < 33_000
    assert text.startswith("beginx")
    assert text.endswith("xend")
    assert "[... 4,968,008 characters cut ...]" in text


def test_a_broken_should_is_a_warning() -> None:
    assert entry(make([result(SHOULDS[0], Verdict.FAIL, message="m")]), SHOULDS[0]).verdict == "warn"


def test_the_environment_without_vllm_is_possible() -> None:
    document = make([], environment=Environment(None, None, "9", "3.11", "Linux"))
    assert len(document.targets[0].rules) == len(load_catalogue().rules)


def test_headlines_tell_the_worst_first() -> None:
    assert headline({"fail": 2, "crash": 1, "pass": 3}) == "2 fail, 1 crash; 3 rules kept"
    assert headline({"pass": 1, "warn": 2}) == "1 rule kept, none broken; 2 warnings"
    assert headline({"inconclusive": 9}) == "Nothing was shown: no rule passed, none was broken"
    assert {verdict.value for verdict in Verdict if verdict.is_bad} == BAD


def test_building_needs_the_catalogue_only() -> None:
    assert build_document(facts_of(), load_catalogue()).kit.rules_digest == load_catalogue().digest()
