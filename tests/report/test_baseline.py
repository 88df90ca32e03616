"""The baseline: what it may say, what it excuses, and that an entry that does not fit fails the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from making import MUSTS, as_data, entry, make, result, sealed, seen

from kvconform.baseline import Baseline, Entry, Fit, Tried, read_baseline
from kvconform.errors import UsageError
from kvconform.report import html, markdown
from kvconform.report.badge import badge
from kvconform.report.compare import compare
from kvconform.report.document import Document
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue
from kvconform.verdicts import Verdict

if TYPE_CHECKING:
    from conftest import Project

RULE, OTHER = MUSTS[0], MUSTS[1]
REASON = 'reason = "known since 1.2"\nlink = "https://example.org/7"\n'


def read(tmp_path: Path, text: str) -> Baseline:
    (tmp_path / "b.toml").write_text(text)
    return read_baseline(tmp_path / "b.toml", "b.toml")


def known(rule: str = RULE, target: str = "", kind: Any = "known failure") -> Entry:
    return Entry(kind, rule, target, "known since 1.2", "https://example.org/7")


def with_baseline(verdict: Verdict, *entries: Entry, rule: str = RULE) -> Document:
    results = [result(rule, verdict, message="a text")]
    names = {"no:Such": "no module 'no'."}
    baseline = Baseline("b.toml", entries)
    return make(results, [seen(rule)], baseline=baseline, exit_status=0, no_such_target=names.get)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_entries_of_both_lists_are_read(tmp_path: Path) -> None:
    text = f'[[known]]\nrule = "META-07"\ntarget = "x:Y"\n{REASON}[[flaky]]\nrule = "LOAD-01"\n{REASON}'
    assert read(tmp_path, text).entries == (known("META-07", "x:Y"), known("LOAD-01", kind="flaky"))
    assert read(tmp_path, "").entries == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[known", "it is not valid TOML"),
        ('[[broken]]\nrule = "X"', "unknown key 'broken'; expected are the tables [[known]] and [[flaky]]"),
        ('[known]\nrule = "X"', "known is not a list of tables: write [[known]]"),
        ("known = [1]", "known is not a list of tables"),
        (f"[[known]]\n{REASON}", "entry 1 of [[known]] lacks the key 'rule'"),
        ('[[flaky]]\nrule = "X"\nreason = "y"', "entry 1 of [[flaky]] lacks the key 'link'"),
        (f'[[known]]\nrule = "X"\n{REASON}until = "1"', "entry 1 of [[known]] has the unknown key 'until'"),
        (f"[[known]]\nrule = 7\n{REASON}", "rule = 7, but expected is a text that is not empty"),
        ('[[known]]\nrule = "X"\nreason = " "\nlink = "y"', "reason = ' ', but expected is a text"),
        (f'[[known]]\nrule = "X"\n{REASON}[[flaky]]\nrule = "X"\n{REASON}', "X is there twice"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith("b.toml: ")
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, sentence in (("none", "there is no such file"), ("binary", "it cannot be read"), (".", "it cannot be")):
        with pytest.raises(UsageError, match=sentence):
            read_baseline(tmp_path / name, name)


# -- what it excuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.TIMEOUT, Verdict.CRASH])
def test_a_known_failure_is_shown_as_such_with_its_verdict(verdict: Verdict) -> None:
    document = with_baseline(verdict, known())
    found = entry(document, RULE)
    assert found.verdict == "known failure"
    assert found.baseline is not None
    assert (found.baseline.verdict, found.baseline.reason) == (verdict.value, "known since 1.2")
    assert found.messages == ("a text",)
    assert document.run.baseline is not None
    assert document.run.baseline.problems == ()
    assert [reason.kind for reason in document.run.partial_reasons] == ["known failure"]
    assert document.run.partial_reasons[0].sentence == f"b.toml calls 1 rule a known failure: {RULE}"


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.PASS])
def test_a_flaky_rule_may_fail_or_pass(verdict: Verdict) -> None:
    document = with_baseline(verdict, known(kind="flaky"))
    assert entry(document, RULE).verdict == "flaky"
    assert document.run.partial
    assert document.run.baseline is not None
    assert document.run.baseline.problems == ()


def test_a_failure_of_the_kit_is_never_excused() -> None:
    document = with_baseline(Verdict.KIT_ERROR, known())
    assert entry(document, RULE).verdict == "kit error"
    assert document.run.baseline is not None
    assert document.run.baseline.problems == ()


@pytest.mark.parametrize(
    ("verdict", "one", "sentence"),
    [
        (Verdict.PASS, known(), f"known failure {RULE}: the rule passes now, so the entry is stale: remove it."),
        (Verdict.INCONCLUSIVE, known(), "the rule is inconclusive now, so nothing shows that it still fails"),
        (Verdict.NOT_APPLICABLE, known(), "the rule is not applicable now, so nothing shows"),
        (
            Verdict.FAIL,
            known(OTHER),
            f"{OTHER}: no test checks the rule, so nothing can show that it fails",
        ),
        (Verdict.FAIL, known(OTHER, kind="flaky"), f"flaky {OTHER}: no test checks the rule"),
        (Verdict.FAIL, known("NOPE-01"), "there is no rule NOPE-01; 'kvconform rules' lists them all"),
        (Verdict.FAIL, known("NOPE-01", "x:Y"), "known failure NOPE-01 of x:Y: there is no rule NOPE-01"),
        (Verdict.FAIL, known(target="no:Such"), "there is no such connector: no module 'no'."),
    ],
)
def test_an_entry_that_does_not_fit_is_an_error(verdict: Verdict, one: Entry, sentence: str) -> None:
    baseline = with_baseline(verdict, one).run.baseline
    assert baseline is not None
    (problem,) = baseline.problems
    assert problem.startswith("b.toml: ")
    assert sentence in problem


def test_an_entry_for_all_connectors_fits_if_the_rule_fails_for_one() -> None:
    verdicts = {("a", RULE): Verdict.PASS, ("b", RULE): Verdict.FAIL}
    found = Baseline("b", (known(),)).fit(Tried(verdicts, ["a", "b"], [RULE], [RULE]))
    assert found == Fit()


# -- what a run has not tried ------------------------------------------------------------------------------------------

ELSEWHERE = f"known failure {RULE} of x:Y: not tried, because this run has no connector x:Y."


@pytest.mark.parametrize(
    ("one", "tests", "shipped", "sentence"),
    [
        (known(OTHER), [seen(OTHER, "deselected")], {}, "not tried, because none of the rule's tests ran."),
        (known(OTHER, kind="flaky"), [seen(OTHER, "not run")], {}, "not tried, because none of the rule's tests ran."),
        (known(OTHER), [], {"test_a.py::test_b": (OTHER,)}, "not tried, because none of the rule's tests ran."),
        (known(target="x:Y"), [], {}, ELSEWHERE),
        (known(), [seen(RULE, "deselected", nodeid="other")], {}, "not tried in full: the rule is pass, but some of"),
        (known(), [], {"test_a.py::test_b": (RULE,)}, "not tried in full: the rule is pass, but some of its tests"),
    ],
)
def test_an_entry_that_the_run_left_out_is_no_error_and_told(
    one: Entry, tests: list[Any], shipped: dict[str, Any], sentence: str
) -> None:
    baseline = Baseline("b.toml", (one,))
    document = make([result(RULE, Verdict.PASS)], [seen(RULE), *tests], baseline=baseline, shipped=shipped)
    assert document.run.baseline is not None
    assert document.run.baseline.problems == ()
    (told,) = document.run.baseline.not_tried
    assert sentence in told
    assert accepted(as_data(document)) == ()
    page, text = html.render(document), markdown.render(document)
    assert "In the baseline, and not tried" in page
    assert "In the baseline, and not tried" in text


def test_a_flaky_rule_of_which_a_part_ran_fits() -> None:
    baseline = Baseline("b.toml", (known(kind="flaky"),))
    tests = [seen(RULE), seen(RULE, "deselected", nodeid="other")]
    document = make([result(RULE, Verdict.PASS)], tests, baseline=baseline)
    assert document.run.baseline is not None
    assert (document.run.baseline.problems, document.run.baseline.not_tried) == ((), ())


def test_the_entry_for_one_connector_goes_before_the_one_for_all() -> None:
    baseline = Baseline("b", (known(), known(target="a", kind="flaky")))
    assert str(baseline.excuse("a", RULE, Verdict.FAIL)) == f"flaky {RULE} of a"
    assert str(baseline.excuse("b", RULE, Verdict.FAIL)) == f"known failure {RULE}"


# -- the other forms ---------------------------------------------------------------------------------------------------


def test_every_form_shows_it() -> None:
    document = with_baseline(Verdict.FAIL, known(), known("NOPE-01"))
    page, text = html.render(document), markdown.render(document)
    for form in (page, text):
        assert "known since 1.2" in form
        assert "The baseline does not fit" in form
        assert "known failure" in form
    assert '<a href="https://example.org/7" rel="noreferrer nofollow">' in page
    shown = badge(document)
    assert (shown.message, shown.colour) == ("1 known failure, partial", "yellow")


def test_a_link_that_is_no_address_is_only_text() -> None:
    script = Entry("known failure", RULE, "", "<b>", "javascript:alert(1)")
    page = html.render(with_baseline(Verdict.FAIL, script))
    assert 'href="javascript' not in page
    assert "&lt;b&gt;" in page


def accepted(data: dict[str, Any]) -> tuple[str, ...]:
    return verify(sealed(data), load_catalogue(), frozenset()).problems


def test_verify_accepts_a_run_with_a_baseline_as_partial() -> None:
    assert accepted(as_data(with_baseline(Verdict.FAIL, known()))) == ()


def test_verify_refuses_excuses_that_contradict_the_run() -> None:
    data = as_data(with_baseline(Verdict.FAIL, known()))
    none = {**data["run"], "baseline": None}
    assert any("excused by a baseline, but the run had none" in p for p in accepted({**data, "run": none}))
    whole = {**data["run"], "partial": False, "partial_reasons": []}
    assert any("not called partial, although a baseline excuses" in p for p in accepted({**data, "run": whole}))
    stale = as_data(with_baseline(Verdict.PASS, known()))
    assert any("where the baseline does not fit the run" in p for p in accepted(stale))


def test_verify_refuses_a_known_failure_that_passed() -> None:
    data = as_data(with_baseline(Verdict.FAIL, known()))
    (target,) = data["targets"]
    excused = next(rule for rule in target["rules"] if rule["id"] == RULE)
    excused["baseline"]["verdict"] = "pass"
    assert accepted(data)
    excused["baseline"] = None
    assert accepted(data)


def test_diff_calls_an_excused_failure_worse_than_a_pass_and_no_better_than_a_failure() -> None:
    passed, excused = make([result(RULE, Verdict.PASS)]), with_baseline(Verdict.FAIL, known())
    failed = make([result(RULE, Verdict.FAIL)])
    assert [change.kind for change in compare(passed, excused).changes] == ["worse"]
    assert [change.kind for change in compare(failed, excused).changes] == ["changed"]
    assert "Only the run after had a baseline." in compare(passed, excused).notes


# -- a run -------------------------------------------------------------------------------------------------------------

KNOWN = f'[[known]]\nrule = "SIG-02"\n{REASON}'


def test_a_known_failure_does_not_fail_the_run_and_a_stale_entry_does(project: Project) -> None:
    (project.path / "b.toml").write_text(KNOWN)
    code, output = project.run("--kvconform-baseline=b.toml")
    assert code == 0, output
    assert "1 known" in output.splitlines()[-1]
    assert "PARTIAL excused by b.toml: SIG-02 (known failure)" in output
    assert "KNOWN        SIG-02" in output
    assert entry(project.report(), "SIG-02").verdict == "known failure"

    code, output = project.run("--kvconform-baseline=b.toml", FIXED="1")
    assert code == 1, output
    assert "BASELINE b.toml: known failure SIG-02: the rule" in output
    assert project.report().run.exit_status == 1


def test_an_entry_whose_tests_were_deselected_does_not_fail_the_run(project: Project) -> None:
    elsewhere = f'[[known]]\nrule = "SIG-01"\ntarget = "connector:NotAConnector"\n{REASON}'
    (project.path / "b.toml").write_text(KNOWN + elsewhere)
    selection = ("-k", "kept", "--kvconform-baseline=b.toml")
    code, output = project.run(*selection, "-n", "1", COLUMNS="200")
    assert code == 0, output
    assert "BASELINE b.toml: known failure SIG-02: not tried, because none of the rule's tests ran." in output
    assert "this run has no connector connector:NotAConnector." in output
    used = project.report().run.baseline
    assert used is not None
    assert (used.problems, len(used.not_tried)) == ((), 2)

    (project.path / "b.toml").write_text(KNOWN + elsewhere.replace("connector:", "conector:"))
    code, output = project.run(*selection, COLUMNS="200")
    assert code == 1, output
    assert "known failure SIG-02: not tried" in output
    assert "there is no such connector: 'conector:NotAConnector':" in output


def test_it_works_under_xdist_from_the_configuration_and_can_be_switched_off(project: Project) -> None:
    (project.path / "ci").mkdir()
    (project.path / "ci" / "b.toml").write_text(KNOWN.replace("[[known]]", "[[flaky]]"))
    (project.path / "ci" / "kv.toml").write_text('baseline = "b.toml"\n')
    code, output = project.run("--kvconform-config=ci/kv.toml", "-n", "1")
    assert code == 0, output
    assert "FLAKY        SIG-02" in output
    code, output = project.run("--kvconform-config=ci/kv.toml", "--kvconform-baseline=")
    assert code == 1, output
    assert project.report().run.baseline is None


def test_a_baseline_that_is_wrong_ends_the_run_before_it_starts(project: Project) -> None:
    (project.path / "b.toml").write_text("[[known]]\n")
    code, output = project.run("--kvconform-baseline=b.toml")
    assert code == 4
    assert "b.toml: entry 1 of [[known]] lacks the key 'rule'." in output
