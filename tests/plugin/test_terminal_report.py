"""The summary's text."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from kvconform.report.model import NOT_RUN, RunReport, build_report, describe_environment
from kvconform.report.terminal import render
from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, Verdict

TARGET = "my.module:MyConnector"


def report(*results: RuleResult, named: tuple[tuple[str, str], ...] = (), **options: object) -> RunReport:
    facts = {"presets": {TARGET: None}, "unusable": {}, "environment": "kvconform 0, vLLM 0", **options}
    return build_report(results=results, named=named, catalogue=load_catalogue(), **facts)  # type: ignore[arg-type]


def result(rule: str, verdict: Verdict, **facts: object) -> RuleResult:
    return RuleResult(rule, TARGET, verdict, nodeid=f"suites/test_x.py::test_{rule}", **facts)  # type: ignore[arg-type]


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_every_verdict_says_what_it_rests_on() -> None:
    text = words(
        render(
            report(
                result("SIG-01", Verdict.PASS, witnesses={"constructions": 3, "unseen": 0}),
                result("SIG-02", Verdict.FAIL, message="the whole text"),
                result("SIG-05", Verdict.INCONCLUSIVE, message="no preemption happened"),
                result("ROLE-01", Verdict.NOT_APPLICABLE, message="hma is not claimed"),
            ),
            width=200,
            color=False,
        )
    )
    catalogue = load_catalogue()
    for rule in ("SIG-01", "SIG-02", "SIG-05", "ROLE-01"):
        assert words(catalogue.rule(rule).sentence) in text
    assert "witnessed: 3 constructions ROLE" not in text
    assert "witnessed: 3 constructions FAIL SIG-02" in text
    assert "test: suites/test_x.py::test_SIG-02 more: kvconform explain SIG-02" in text
    assert "the whole text" not in text, "it stands under FAILURES"
    assert "no preemption happened" in text
    assert "hma is not claimed" in text
    assert "4 rules: 1 pass, 1 fail, 1 not applicable, 1 inconclusive" in text
    assert text.endswith("kvconform 0, vLLM 0")


def test_a_warning_shows_its_whole_text() -> None:
    should = next(rule.id for rule in load_catalogue() if rule.level == "SHOULD")
    text = render(report(result(should, Verdict.FAIL, message="first line\nsecond line")), width=100, color=False)
    assert re.search(rf"^WARN +{should} ", text, re.MULTILINE)
    assert "first line" in text
    assert "second line" in text


def test_chapters_come_in_the_catalogues_order_and_rules_once() -> None:
    found = [result("ROLE-01", Verdict.INCONCLUSIVE), result("SIG-01", Verdict.FAIL), result("SIG-01", Verdict.PASS)]
    text = render(report(*found), width=100, color=False)
    assert re.findall(r"^[A-Z/]+ +([A-Z]+-\d+)", text, re.MULTILINE) == ["SIG-01", "ROLE-01"]
    assert text.index("(SIG)") < text.index("SIG-01") < text.index("(ROLE)") < text.index("ROLE-01")


def test_named_rules_without_a_result_and_unknown_rules_are_shown() -> None:
    text = render(report(result("NEW-77", Verdict.FAIL), named=((TARGET, "SIG-01"),)), width=100, color=False)
    assert re.search(r"^NOT RUN +SIG-01", text, re.MULTILINE)
    assert NOT_RUN not in text
    assert "2 rules: 1 fail, 1 not run" in text
    assert "Rules that are not in the catalogue" in text
    assert re.search(r"^FAIL +NEW-77", text, re.MULTILINE)


def test_targets_presets_and_unusable_targets_are_named() -> None:
    found = [result("SIG-01", Verdict.FAIL), RuleResult("SIG-01", "vllm:ExampleConnector", Verdict.FAIL)]
    presets = {"vllm:ExampleConnector": "vllm:ExampleConnector", TARGET: None}
    text = render(
        report(*found, presets=presets, unusable={"a:B": "'a:B': no such module.", "c:D": "no such class."}),
        width=100,
        color=False,
    )
    assert text.index("vllm:ExampleConnector\n") < text.index(f"{TARGET}\n")
    assert "1 rule: 1 fail (settings of the preset for vllm:ExampleConnector)" in text
    assert "NOT TESTED 'a:B': no such module." in text
    assert "NOT TESTED c:D: no such class." in text


def test_of_a_target_that_could_not_be_tested_nothing_is_listed_but_why() -> None:
    why = {TARGET: "its module cannot be imported."}
    named = ((TARGET, "SIG-01"), (TARGET, "SIG-02"))
    text = render(report(named=named, unusable=why), width=100, color=False)
    assert "SIG-01" not in text
    assert f"NOT TESTED {TARGET}: its module cannot be imported." in text
    # What was found out before it became unusable is not lost.
    some = render(report(result("SIG-01", Verdict.FAIL), named=named, unusable=why), width=100, color=False)
    assert "2 rules: 1 fail, 1 not run" in some


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_lines_are_as_narrow_as_the_window(width: int) -> None:
    found = [result(rule.id, Verdict.INCONCLUSIVE, message=f"{rule.id} {'m' * 100}") for rule in load_catalogue()]
    text = render(report(*found), width=width, color=False)
    assert max(len(line) for line in text.splitlines()) <= max(width, 40)
    assert sum(line.count("m" * 5) for line in text.splitlines()) >= len(found), "nothing is cut off"


def test_without_colour_the_text_is_ascii() -> None:
    text = render(report(result("SIG-01", Verdict.INCONCLUSIVE, message="a → b … é")), width=100, color=False)
    assert text.isascii()
    assert "a -> b ... ?" in text
    coloured = render(report(result("SIG-01", Verdict.FAIL)), width=100, color=True)
    assert "\x1b[1;31mFAIL" in coloured


def test_a_long_reason_is_told_once_and_a_short_one_every_time() -> None:
    long = "the connector refuses this set-up because " + "x" * 60
    rules = ("SIG-01", "SIG-02", "SIG-05", "SIG-07")
    reasons = (long, long, "no hit", "no hit")
    found = [result(rule, Verdict.INCONCLUSIVE, message=text) for rule, text in zip(rules, reasons, strict=True)]
    text = render(report(*found), width=200, color=False)
    assert text.count(long) == 1
    assert text.count("for the reason given at SIG-01") == 1
    assert text.count("no hit") == 2


def test_many_reasons_of_one_rule_are_counted() -> None:
    found = [result("SIG-01", Verdict.INCONCLUSIVE, message=f"reason {number}") for number in range(5)]
    text = render(report(*found), width=200, color=False)
    assert "reason 2" in text
    assert "reason 3" not in text
    assert "and 2 more reasons of this kind" in text


def test_many_tests_of_one_rule_are_counted() -> None:
    found = [RuleResult("SIG-01", TARGET, Verdict.FAIL, nodeid=f"test_{number}") for number in range(5)]
    assert "test: test_0, test_1, test_2 and 2 more" in render(report(*found), width=100, color=False)


def test_the_environment_is_one_line() -> None:
    line = describe_environment(engine="vllm", device="cpu", budget="quick", seed=3)
    assert re.fullmatch(r"kvconform \S+, vLLM .+, engine vllm on cpu, budget quick, seed 3", line)


@pytest.mark.parametrize(
    ("version", "newer"),
    [("0.33.0", False), ("0.33.0.post1+cpu", False), ("0.29.0", False), ("0.33.1", True), ("0.34.0.dev7+gabc", True)],
)
def test_a_release_that_the_kit_is_not_tested_with_is_told(
    monkeypatch: pytest.MonkeyPatch, version: str, newer: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    line = describe_environment(engine="vllm", device="cpu", budget="quick", seed=3)
    told = f"vLLM {version} (newer than 0.33.0, the last one that this kvconform is tested with), engine"
    assert (told in line) is newer
    assert f"vLLM {version}" in line


def test_only_bad_verdicts_count_as_bad() -> None:
    assert report(result("SIG-01", Verdict.KIT_ERROR)).has_bad_verdict
    assert not report(result("SIG-01", Verdict.INCONCLUSIVE), result("SIG-02", Verdict.NOT_APPLICABLE)).has_bad_verdict
