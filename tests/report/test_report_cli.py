"""``kvconform report``, ``verify`` and ``diff`` as they are typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from making import MUSTS, TARGET, everything, make, result, sealed

from kvconform.cli import main
from kvconform.report.document import Document
from kvconform.report.json_report import dumps
from kvconform.verdicts import Verdict


@pytest.fixture(autouse=True)
def _no_suites(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """These reports are hand-made: no suite checks their rules."""
    empty = tmp_path / "suites"
    empty.mkdir()
    monkeypatch.setattr("kvconform.collection.suites_directory", lambda: empty)
    monkeypatch.chdir(tmp_path)


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args, prog_name="kvconform")


def save(name: str, document: Document) -> None:
    Path(name).write_text(dumps(document), encoding="utf-8")


def test_report_shows_a_summary() -> None:
    save("r.json", everything())
    found = run("report", "r.json")
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert lines[0] == f"{TARGET}: 1 fail, 1 crash, 1 timeout, 1 kit error; 1 rule kept; 1 known failure, 1 flaky."
    assert lines[1].startswith(
        "  1 fail, 1 crash, 1 timeout, 1 kit error, 1 known failure, 1 flaky, 1 warn, 1 pass, 1 inconclusive,"
    )
    assert lines[2] == "Partial: 1 test was deselected (-k 'x')."


def test_report_makes_all_forms() -> None:
    save("r.json", everything())
    args = ("--html", "o/r.html", "--markdown", "o/r.md", "--badge", "o/b.svg", "--badge", "o/b.json")
    found = run("report", "r.json", *args)
    assert (found.exit_code, found.stdout) == (0, "")
    assert Path("o/r.html").read_text().startswith("<!doctype html>")
    assert Path("o/r.md").read_text().startswith("## KV connector conformance")
    assert Path("o/b.svg").read_text().startswith("<svg ")
    assert json.loads(Path("o/b.json").read_text())["color"] == "red"
    assert run("report", "r.json", "--markdown", "-").stdout == Path("o/r.md").read_text()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("report", "none.json"), "none.json: there is no such file"),
        (("report", "r.json", "--badge", "b.png"), "--badge b.png: expected OUT.svg or OUT.json."),
        (("report", "r.json", "--html", "r.json/x.html"), "r.json/x.html: it cannot be written"),
        (("report", "text.txt"), "text.txt: it is not JSON"),
        (("verify", "none.json"), "none.json: there is no such file"),
        (("diff", "r.json", "none.json"), "none.json: there is no such file"),
        (("diff", "r.json", "changed.json"), "changed.json: its digest does not match"),
        (("diff", "r.json"), "Missing argument 'AFTER'"),
    ],
)
def test_a_usage_error_is_one_sentence_and_exit_code_4(args: tuple[str, ...], sentence: str) -> None:
    save("r.json", everything())
    Path("text.txt").write_text("no report")
    data = json.loads(Path("r.json").read_text())
    Path("changed.json").write_text(json.dumps({**data, "unusable": [{"target": "x", "sentence": "y"}]}))
    found = run(*args)
    assert found.exit_code == 4
    assert sentence in found.stderr
    assert found.stdout == ""


def test_verify_accepts_and_says_what_it_accepts() -> None:
    save("r.json", make([result(MUSTS[0], Verdict.PASS)]))
    found = run("verify", "r.json")
    assert found.exit_code == 0
    assert found.stdout.startswith(
        "ACCEPTED r.json: unchanged and complete. It says what a run said; it does not say who ran it.\n"
    )
    save("p.json", everything())
    found = run("verify", "p.json")
    assert found.exit_code == 0
    assert "ACCEPTED p.json: unchanged and complete, but partial." in found.stdout
    assert "The run is partial: 1 test was deselected (-k 'x'); " in found.stdout


def _tampered(text: str) -> str:
    assert '"verdict": "fail"' in text
    return text.replace('"verdict": "fail"', '"verdict": "kit error"', 1)


def _incomplete(text: str) -> str:
    data = json.loads(text)
    del data["targets"][0]["rules"][0]
    return json.dumps(sealed(data))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_tampered, "the report was changed after the run"),
        (_incomplete, "SIG-01 must be in a report on vLLM 0.32.0, and is missing"),
        (lambda text: text[:-20], "it is not JSON"),
        (lambda _: "{}", "it is not a report of kvconform"),
        (lambda _: "", "it is not JSON"),
    ],
)
def test_verify_refuses(change: Callable[[str], str], sentence: str) -> None:
    Path("r.json").write_text(change(dumps(everything())))
    found = run("verify", "r.json")
    assert found.exit_code == 1
    assert found.stdout.startswith("REFUSED r.json: ")
    assert sentence in found.stdout
    assert len(found.stdout.splitlines()) == 1


def test_nothing_in_a_report_steers_the_terminal() -> None:
    save("r.json", make([], unusable={"a:B": "\x1b]0;title\x07\x1b[2Jcleared"}, exit_status=4))
    for args in (("report", "r.json"), ("verify", "r.json"), ("diff", "r.json", "r.json")):
        assert "\x1b" not in run(*args).stdout


def test_diff_shows_what_changed_and_fails_on_worse() -> None:
    save("a.json", make([result(MUSTS[0], Verdict.FAIL, message="m"), result(MUSTS[1], Verdict.PASS)]))
    save("b.json", make([result(MUSTS[0], Verdict.PASS), result(MUSTS[1], Verdict.PASS)]))
    better, worse, same = (
        run("diff", "a.json", "b.json"),
        run("diff", "b.json", "a.json"),
        run("diff", "a.json", "a.json"),
    )
    assert (better.exit_code, worse.exit_code, same.exit_code) == (0, 1, 0)
    assert re.search(rf"^ *better +{MUSTS[0]} +MUST +fail +pass *$", better.stdout, re.MULTILINE)
    assert re.search(rf"^ *worse +{MUSTS[0]} +MUST +pass +fail *$", worse.stdout, re.MULTILINE)
    assert TARGET in worse.stdout
    assert worse.stdout.rstrip().endswith("1 worse, 1 the same.")
    assert same.stdout == "2 the same.\n"


def test_diff_as_json() -> None:
    save("a.json", make([result(MUSTS[0], Verdict.PASS)]))
    save("b.json", make([result(MUSTS[0], Verdict.FAIL, message="m")]))
    found = run("diff", "a.json", "b.json", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout) == {
        "worse": [{"target": TARGET, "rule": MUSTS[0], "level": "MUST", "before": "pass", "after": "fail"}],
        "better": [],
        "changed": [],
        "new": [],
        "gone": [],
        "same": 0,
        "notes": [],
    }
