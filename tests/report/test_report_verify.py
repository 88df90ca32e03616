"""Which reports are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from making import EXPECTED, MUSTS, as_data, everything, make, result, sealed, seen

from kvconform.report.verify import verify
from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

Data = dict[str, Any]


def check(data: Any, checked: frozenset[str] = frozenset()) -> tuple[str, ...]:
    return verify(data, load_catalogue(), checked).problems


def rules(data: Data) -> list[Data]:
    found: list[Data] = data["targets"][0]["rules"]
    return found


def rule(data: Data, verdict: str) -> Data:
    return next(one for one in rules(data) if one["verdict"] == verdict)


def test_a_report_of_a_run_is_accepted() -> None:
    assert check(as_data(make([result(MUSTS[0], Verdict.PASS)]))) == ()


def test_a_partial_report_is_accepted_and_called_so() -> None:
    found = verify(as_data(everything()), load_catalogue(), frozenset())
    assert found.problems == ()
    excused = f"known.toml calls 1 rule a known failure: {MUSTS[-1]}; known.toml calls 1 rule flaky: {MUSTS[-2]}"
    assert found.notes == (f"The run is partial: 1 test was deselected (-k 'x'); {excused}.",)


def test_a_changed_report_is_refused() -> None:
    data = as_data(everything())
    rule(data, "fail")["verdict"] = "warn"
    assert check(data) == ("The digest does not match the content: the report was changed after the run.",)


def _drop(data: Data) -> None:
    del rules(data)[5]


def _drop_many(data: Data) -> None:
    del rules(data)[5:20]


def _add(data: Data) -> None:
    rules(data).append({**rule(data, "unchecked"), "id": "NEW-01", "level": None})


def _twice(data: Data) -> None:
    rules(data).append(rule(data, "unchecked"))


def _soften(data: Data) -> None:
    rule(data, "fail")["level"] = "SHOULD"


def _reword(data: Data) -> None:
    data["rules"][3]["sentence"] = "Anything goes."


def _forget_text(data: Data) -> None:
    del data["rules"][3]


def _whole(data: Data) -> None:
    data["run"] |= {"partial": False, "partial_reasons": []}


def _good_exit(data: Data) -> None:
    data["run"]["exit_status"] = 0


def _no_witness(data: Data) -> None:
    rule(data, "pass")["witnesses"] = {"external hits": 0}


def _no_test(data: Data) -> None:
    rule(data, "pass")["tests"] = []


def _counts(data: Data) -> None:
    data["run"]["tests"]["ran"] += 1


def _no_target(data: Data) -> None:
    data["targets"] = []


def _other_rules(data: Data) -> None:
    data["kit"]["rules_digest"] = "0" * 64


def _other_kit(data: Data) -> None:
    data["kit"] = {"version": "99.0", "rules_digest": "0" * 64}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_drop, f"{EXPECTED[5]} must be in a report on vLLM 0.32.0, and is missing."),
        (_drop_many, f"{EXPECTED[9]} and 10 more must be in a report on vLLM 0.32.0, and are missing."),
        (_add, "NEW-01 is no rule of vLLM 0.32.0."),
        (_twice, "is there more than once."),
        (_soften, "is not that of the catalogue."),
        (_reword, "is not what the catalogue says."),
        (_forget_text, "The report does not say what"),
        (_whole, "the run is not called partial, although tests are missing."),
        (_good_exit, "pytest's exit status is 0"),
        (_no_witness, "is called pass without a witness."),
        (_no_test, "is judged without a test."),
        (_counts, "are not the 10 that were collected."),
        (_no_target, "The report is on no connector."),
        (_other_rules, "its rules digest was changed, or the kit was."),
        (_other_kit, "verify it with kvconform==99.0."),
    ],
)
def test_a_careful_forgery_is_refused(change: Callable[[Data], None], sentence: str) -> None:
    data = as_data(everything())
    change(data)
    problems = check(sealed(data))
    assert any(sentence in problem for problem in problems), problems
    assert all(problem.endswith(".") for problem in problems)


def test_a_report_on_another_release_lacks_the_rules_of_that_release() -> None:
    data = as_data(make([result(MUSTS[0], Verdict.PASS)]))
    data["environment"]["vllm"] = "0.33.0"
    assert any("must be in a report on vLLM 0.33.0" in problem for problem in check(sealed(data)))


def test_a_checked_rule_cannot_be_called_unchecked() -> None:
    data = as_data(make([result(MUSTS[0], Verdict.PASS)]))
    assert check(data, frozenset({MUSTS[0]})) == ()
    (problem,) = check(data, frozenset({MUSTS[1]}))
    assert problem.endswith(f"{MUSTS[1]} is called unchecked, but tests of the suites check it.")


def test_what_is_no_report_is_refused_with_one_sentence() -> None:
    assert check({"format": "x"}) == (
        'it is not a report of kvconform: expected is an object with "format": "kvconform-report".',
    )


def test_notes_name_what_a_reader_has_to_know() -> None:
    results = [result("ACME-1", Verdict.PASS), result(MUSTS[0], Verdict.PASS)]
    document = make(results, [seen("ACME-1"), seen(MUSTS[0])], unusable={"a:B": "no."}, exit_status=4)
    notes = verify(as_data(document), load_catalogue(), frozenset()).notes
    assert notes == (
        "The run is partial: 1 connector could not be tested: a:B.",
        "a:B was not tested.",
        "Beside the rules of the release the report has ACME-1.",
    )
