"""How the outcome of a test becomes verdicts, texts and an exit code; with and without xdist."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from kvconform.rules import load_catalogue

MUSTS = [rule.id for rule in load_catalogue() if rule.level == "MUST"]
SHOULDS = [rule.id for rule in load_catalogue() if rule.level == "SHOULD"]

HEADER = """
    import pytest
    from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, record
    from kvconform.verdicts import RuleResult, Verdict
    pytestmark = pytest.mark.usefixtures("kvconform_target")

    """


def named(body: str, *rules: str) -> str:
    """One test that names rules."""
    name = re.sub(r"\W", "_", "_".join(rules))
    lines = "\n        ".join(body.splitlines())
    return (
        f"\n    @pytest.mark.kvconform_rules({', '.join(map(repr, rules))})"
        f"\n    def test_{name}(request):\n        {lines}\n"
    )


def verdict_lines(result: pytest.RunResult) -> dict[str, str]:
    """Rule id -> label, from the summary."""
    out = result.stdout.str().partition("= kvconform =")[2]
    return {rule: label for label, rule in re.findall(r"^([A-Z/]+(?: [A-Z]+)?) +([A-Z]+-\d+) ", out, re.MULTILINE)}


TEXT = "MATCH-99 broken\\n\\n  expected: 3 tokens\\n  observed: 4 tokens"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_kind_of_outcome_has_its_verdict(project, workers: str) -> None:
    rules = iter(MUSTS)
    expected: dict[str, str] = {}
    tests: list[str] = []

    def add(label: str, body: str) -> None:
        rule = next(rules)
        expected[rule] = label
        tests.append(named(body.replace("RULE", rule), rule))

    add("PASS", "record(request, 'RULE', witnesses={'hits': 2})")
    add("PASS", "record(request.node, RuleResult('RULE', '', Verdict.PASS, witnesses={'hits': 2}))")
    add("INCONCLUSIVE", "record(request, 'RULE')")
    add("INCONCLUSIVE", "pass")
    add("INCONCLUSIVE", "raise Inconclusive('no external hit')")
    add("INCONCLUSIVE", "pytest.skip('no disk')")
    add("INCONCLUSIVE", "pytest.xfail('known')")
    add("N/A", "raise NotApplicable('hma is not claimed')")
    add("FAIL", f"raise ConformanceFailure('{TEXT}')")
    add("FAIL", f"raise ExceptionGroup('two', [ConformanceFailure('{TEXT}'), ConformanceFailure('another')])")
    add("FAIL", "assert 1 == 2, 'a vendor test of its own'")
    add("FAIL", "record(request, 'RULE', Verdict.FAIL)\nraise ConformanceFailure('recorded before')")
    add("KIT ERROR", "1 / 0")
    add("KIT ERROR", "raise ExceptionGroup('mixed', [ConformanceFailure('x'), OSError('y')])")
    add("TIMEOUT", "pytest.fail('Timeout (>1.0s) from pytest-timeout.')")
    add("TIMEOUT", "raise ConformanceFailure('no answer', verdict=Verdict.TIMEOUT)")
    add("CRASH", "raise ConformanceFailure('died', verdict=Verdict.CRASH)")
    project.write({"test_own.py": HEADER + "".join(tests)})

    result = project.run("-n", workers, "--kvconform=connector:MyConnector", "test_own.py")
    assert verdict_lines(result) == expected
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["17 rules: 2 pass, 4 fail, 1 not applicable, 5 inconclusive, 2 timeout, 1 crash, 2 kit error"]
    )


def test_a_failure_shows_its_text_and_nothing_else(project) -> None:
    body = f"""\
from hypothesis import given, settings, strategies
@settings(database=None, max_examples=5)
@given(strategies.integers())
def check(number):
    raise ConformanceFailure('{TEXT}')
check()"""
    project.write({"test_own.py": HEADER + named(body, MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py", "--junitxml=junit.xml")
    out = result.stdout.str()
    block = out.partition("= FAILURES =")[2].partition("= kvconform =")[0]
    shown = [line for line in block.splitlines() if line and not line.startswith(("=", "_", "-"))]
    assert shown == [
        "MATCH-99 broken",
        "  expected: 3 tokens",
        "  observed: 4 tokens",
    ]
    for noise in ("Traceback", "Falsifying", "Hypothesis", "reproduce_failure"):
        assert noise not in block
    failure = ET.parse(project.path / "junit.xml").find(".//failure")
    assert failure is not None
    assert failure.text == TEXT.replace("\\n", "\n")


def test_a_failure_accuses_only_the_rules_that_it_names(project) -> None:
    first, second, third = MUSTS[:3]
    body = f"record(request, '{first}', witnesses={{'hits': 1}})\nraise ConformanceFailure('text', rules=['{second}'])"
    project.write({"test_own.py": HEADER + named(body, first, second, third)})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    assert verdict_lines(result) == {first: "PASS", second: "FAIL", third: "INCONCLUSIVE"}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_breaking_a_should_warns_and_does_not_fail(project, workers: str) -> None:
    project.write({"test_own.py": HEADER + named(f"raise ConformanceFailure('{TEXT}')", SHOULDS[0])})
    result = project.run("-n", workers, "--kvconform=connector:MyConnector", "test_own.py")
    assert result.ret == 0
    assert verdict_lines(result) == {SHOULDS[0]: "WARN"}
    result.stdout.fnmatch_lines(["*observed: 4 tokens", "*1 warned*"])


def test_a_should_and_a_must_in_one_failure_fail(project) -> None:
    project.write({"test_own.py": HEADER + named("raise ConformanceFailure('text')", SHOULDS[0], MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdict_lines(result) == {SHOULDS[0]: "WARN", MUSTS[0]: "FAIL"}


def test_a_recorded_failure_fails_the_run_although_the_test_passed(project) -> None:
    project.write({"test_own.py": HEADER + named(f"record(request, '{MUSTS[0]}', Verdict.FAIL)", MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_what_a_passing_test_found_beside_its_own_rules_is_told_in_the_summary(project) -> None:
    own = f"record(request, '{MUSTS[0]}', witnesses={{'x': 1}})"
    beside = f"record(request, '{MUSTS[1]}', Verdict.FAIL, message='{TEXT}')"
    body = f"{own}\n{beside}"
    project.write({"test_own.py": HEADER + named(body, MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdict_lines(result) == {MUSTS[0]: "PASS", MUSTS[1]: "FAIL"}
    result.stdout.fnmatch_lines(["*observed: 4 tokens"])


def test_a_connector_that_cannot_be_set_up_is_no_success(project) -> None:
    body = "from kvconform.verdicts import NOT_SET_UP\nraise Inconclusive(f'{NOT_SET_UP}: no server')"
    project.write({"test_own.py": HEADER + named(body, MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdict_lines(result) == {MUSTS[0]: "INCONCLUSIVE"}
    result.stdout.fnmatch_lines(["NOT SET UP*no server"])


def test_a_flood_of_output_is_cut_in_the_report(project) -> None:
    body = "print('noise\\n' * 5000)\nraise ConformanceFailure('text')"
    project.write({"test_own.py": HEADER + named(body, MUSTS[0])})
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    assert 0 < result.stdout.str().count("noise") < 50
    result.stdout.fnmatch_lines(["*earlier lines cut*"])


def test_a_dead_worker_is_a_crash_of_the_rules_it_was_at(project) -> None:
    tests = named("import os; os._exit(3)", MUSTS[0]) + named(
        f"record(request, '{MUSTS[1]}', witnesses={{'x': 1}})", MUSTS[1]
    )
    project.write({"test_own.py": HEADER + tests})
    result = project.run("-n", "2", "--kvconform=connector:MyConnector", "test_own.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert verdict_lines(result) == {MUSTS[0]: "CRASH", MUSTS[1]: "PASS"}


def test_rules_whose_tests_did_not_run_are_named(project) -> None:
    tests = named("raise ConformanceFailure('text')", MUSTS[0]) + named(f"record(request, '{MUSTS[1]}')", MUSTS[1])
    project.write({"test_own.py": HEADER + tests})
    result = project.run("-x", "-p", "no:randomly", "--kvconform=connector:MyConnector", "test_own.py")
    assert verdict_lines(result) == {MUSTS[0]: "FAIL", MUSTS[1]: "NOT RUN"}
    result.stdout.fnmatch_lines(["2 rules: 1 fail, 1 not run"])


def test_results_are_in_the_junit_file(project) -> None:
    project.write({"test_own.py": HEADER + named(f"record(request, '{MUSTS[0]}', witnesses={{'hits': 2}})", MUSTS[0])})
    project.run("--kvconform=connector:MyConnector", "test_own.py", "--junitxml=junit.xml")
    properties = ET.parse(project.path / "junit.xml").findall(".//property[@name='kvconform']")
    assert any('"verdict": "pass"' in entry.attrib["value"] for entry in properties)


def test_a_wider_request_cannot_record(project) -> None:
    project.write(
        {
            "test_own.py": HEADER
            + """
    @pytest.fixture(scope="session")
    def wide(request):
        record(request, "X-01")

    def test_wide(wide): pass
    """
        }
    )
    result = project.run("--kvconform=connector:MyConnector", "test_own.py")
    result.stdout.fnmatch_lines(["*TypeError: record() belongs into a test or a function-scoped fixture*"])
