"""The console command: real content on stdout, one sentence and exit code 4 for wrong input."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from kvconform import __version__
from kvconform.cli import main
from kvconform.errors import UsageError
from kvconform.rules import load_catalogue
from kvconform.rules.engine_bugs import load_engine_bugs


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args, prog_name="kvconform")


def words(text: str) -> str:
    """Text without the line breaks and indents of the layout."""
    return re.sub(r"\s+", " ", text)


def test_explain_shows_everything_about_a_rule() -> None:
    result = run("explain", "MATCH-05")
    rule = load_catalogue().rule("MATCH-05")
    assert result.exit_code == 0
    shown = words(result.stdout)
    for text in (
        rule.id,
        rule.level,
        rule.since,
        rule.capability,
        rule.sentence,
        rule.consequence,
        rule.fix,
        rule.notes,
    ):
        assert words(text) in shown
    assert "vLLM 0.32.0, vllm/v1/core/sched/scheduler.py: Scheduler.schedule (assert num_new_tokens > 0)" in shown
    assert f"MATCH-04 {load_catalogue().rule('MATCH-04').sentence}" in shown
    assert not re.search(r"\bR2\b", shown)


@pytest.mark.parametrize("rule_id", [rule.id for rule in load_catalogue()])
def test_every_rule_can_be_explained(rule_id: str) -> None:
    result = run("explain", rule_id)
    assert result.exit_code == 0
    assert words(load_catalogue().rule(rule_id).fix) in words(result.stdout)


def test_explain_names_the_last_release_of_an_old_rule() -> None:
    assert "vLLM 0.11.2 up to 0.20.2" in run("explain", "sig-3").stdout


def test_explain_leaves_no_blanks_at_line_ends() -> None:
    assert not [line for line in run("explain", "MATCH-05").stdout.splitlines() if line != line.rstrip()]


def test_an_unknown_rule_is_one_sentence_and_exit_code_4() -> None:
    result = run("explain", "MTACH-05")
    assert result.exit_code == 4
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no rule 'MTACH-05'; did you mean MATCH-05")
    assert len(result.stderr.strip().splitlines()) == 1


def test_rules_lists_all_in_one_table() -> None:
    result = run("rules")
    assert result.exit_code == 0
    ids = re.findall(r"^ ([A-Z]+-\d\d) ", result.stdout, flags=re.MULTILINE)
    assert ids == [rule.id for rule in load_catalogue()]
    assert f"{len(ids)} rules." in result.stdout


def test_filters_are_combined() -> None:
    result = run(
        "rules", "--chapter", "match", "--chapter", "ALLOC", "--level", "must", "--capability", "sync-load", "--json"
    )
    assert [rule["id"] for rule in json.loads(result.stdout)] == ["MATCH-05", "ALLOC-04", "ALLOC-05"]


def test_release_filter_drops_rules_of_other_releases() -> None:
    def ids(release: str) -> set[str]:
        return {rule["id"] for rule in json.loads(run("rules", "--release", release, "--json").stdout)}

    assert ids("0.33.0") - ids("0.32.0") >= {"ROLE-16", "ALLOC-10"}
    assert "SIG-03" in ids("0.20.2") - ids("0.21.0")


def test_known_defects_of_vllm_are_listed_per_release() -> None:
    shown = words(run("rules", "--engine-bugs").stdout)
    for bug in load_engine_bugs():
        for text in (bug.id, bug.sentence, bug.situation, bug.advice, str(bug.evidence[0])):
            assert words(text) in shown
    assert "0 known defects of vLLM itself" in run("rules", "--engine-bugs", "--release", "0.21.0").stdout
    with pytest.raises(UsageError, match="--engine-bugs lists no rules"):
        main(["rules", "--engine-bugs", "--json"], standalone_mode=False)
    with pytest.raises(UsageError, match="'x' is not a vLLM release number"):
        main(["rules", "--engine-bugs", "--release", "x"], standalone_mode=False)


def test_json_holds_complete_rules() -> None:
    found = json.loads(run("rules", "--chapter", "SIG", "--json").stdout)
    first = found[0]
    assert first["id"] == "SIG-01"
    assert first["related"] == list(load_catalogue().rule("SIG-01").related)
    assert first["evidence"][0]["symbol"] == "KVConnectorFactory.create_connector"
    assert "until" not in first
    assert "unchecked" not in first


def test_no_match_is_said() -> None:
    result = run("rules", "--chapter", "SIG", "--capability", "mamba")
    assert result.exit_code == 0
    assert result.stdout.startswith("0 rules.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rules", "--chapter", "XYZ"], "'XYZ' is not one of"),
        (["rules", "--level", "WILL"], "'WILL' is not one of"),
        (["rules", "--capability", "fly"], "'fly' is not one of"),
        (["rules", "--release", "newest"], "'newest' is not a vLLM release number"),
        (["rules", "--nope"], "No such option"),
        (["explain"], "Missing argument 'RULE'"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_wrong_input_ends_with_exit_code_4(args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 4
    assert message in result.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout == f"kvconform, version {__version__}\n"
    shown = run("--help")
    assert shown.exit_code == 0
    assert "explain" in shown.stdout
    assert "rules" in shown.stdout


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "kvconform.cli", "explain", "NOPE-99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "There is no rule 'NOPE-99'" in done.stderr


def test_errors_of_later_commands_get_their_exit_codes() -> None:
    @main.command("boom")
    @click.argument("kind")
    def boom(kind: str) -> None:
        raise {"usage": UsageError("Give a file."), "click": click.ClickException("Broken."), "abort": click.Abort()}[
            kind
        ]

    try:
        usage, other, abort = (run("boom", kind) for kind in ("usage", "click", "abort"))
    finally:
        del main.commands["boom"]
    assert (usage.exit_code, usage.stderr) == (4, "Error: Give a file.\n")
    assert (other.exit_code, other.stderr) == (1, "Error: Broken.\n")
    assert (abort.exit_code, abort.stderr) == (1, "Aborted.\n")


def test_without_standalone_mode_errors_are_raised() -> None:
    with pytest.raises(UsageError, match="no rule 'NOPE-99'"):
        main.main(["explain", "NOPE-99"], standalone_mode=False)
