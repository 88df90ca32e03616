"""``kvconform replay``: what playing a case again says, and one connector before and after its fix."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from making_cases import PROGRAM, TARGET, case, examination

from kvconform.cases import replay as playing
from kvconform.cases.model import Case, dumps
from kvconform.checks.model import Examination
from kvconform.cli import main
from kvconform.config import RunConfig
from kvconform.isolation.nursery import Nursery
from kvconform.isolation.room import CrashedError, HungError, KitError
from kvconform.report.json_report import read
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import Program

Examine = Callable[[Program], Examination]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Plays a case with a connector that shows what ``examine`` says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "connector.py").write_text("class MyConnector: pass\n")

    def replay(examine: Examine, case: Case, *args: str) -> Result:
        @contextmanager
        def conformance(target: object, config: RunConfig) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(target=target, examine=examine)

        monkeypatch.setattr(playing, "_conformance", conformance)
        Path("x.case.json").write_text(dumps(case))
        spec = "connector:MyConnector"
        return CliRunner().invoke(main, ["replay", "x.case.json", "--connector", spec, *args], prog_name="kvconform")

    return replay


def always(found: Examination) -> Examine:
    return lambda program: found


def raising(error: Exception) -> Examine:
    def examine(program: Program) -> Examination:
        raise error

    return examine


def only_there(found: Examination) -> Examine:
    """As ``found`` on the case's own scenario, and clean on its control."""
    return lambda program: found if program == PROGRAM else examination()


def last(result: Result) -> str:
    return result.stdout.splitlines()[-1]


def test_a_scenario_that_is_clean_and_witnessed_is_fixed(run: Callable[..., Result]) -> None:
    found = run(always(examination()), case())
    assert found.exit_code == 0
    assert last(found) == "FIXED x.case.json: META-07 is kept (witnessed: 48 external tokens compared)."


def test_symptoms_are_bound_to_the_situation_as_in_the_run(run: Callable[..., Result]) -> None:
    found = run(only_there(examination("LOAD-01", symptom=True)), case())
    assert found.exit_code == 1
    assert last(found) == "FAILED x.case.json: META-07 is still broken."
    assert "META-07 (MUST) broken by connector:MyConnector" in found.stdout
    assert "Contrast: The same scenario without chunked prefill is right" in found.stdout
    assert "Reproduce: kvconform replay x.case.json --kvconform=connector:MyConnector\n" in found.stdout


def test_symptoms_that_the_control_shows_too_are_another_rules(run: Callable[..., Result]) -> None:
    found = run(always(examination("LOAD-01", symptom=True)), case())
    assert found.exit_code == 1
    assert "META-07 is kept, but the scenario shows another rule broken: LOAD-01." in last(found)


def test_what_is_left_of_several_rules_is_told(run: Callable[..., Result]) -> None:
    found = run(always(examination("MATCH-02")), case(rules=("MATCH-01", "MATCH-02")))
    assert found.exit_code == 1
    assert last(found) == "FAILED x.case.json: MATCH-02 is still broken; MATCH-01 is kept now."


def test_silence_without_a_witness_is_no_fix(run: Callable[..., Result]) -> None:
    found = run(always(examination(witnesses={})), case())
    assert found.exit_code == 1
    assert last(found).startswith("NOT SHOWN x.case.json: no rule is broken, but nothing shows that META-07 is kept: ")


HANDED_OFF = "hand-offs behind a local hit"


def with_hand_offs(**changes: Any) -> Case:
    """A case that is only decided where a hand-off came behind a local hit."""
    (known,) = case().situations
    return case(situations=(replace(known, shown=HANDED_OFF),), **changes)


def test_compared_loads_are_no_fix_where_another_situation_has_to_be_seen(run: Callable[..., Result]) -> None:
    found = run(always(examination()), with_hand_offs())
    assert found.exit_code == 1
    assert last(found) == (
        "NOT SHOWN x.case.json: no rule is broken, but nothing shows that META-07 is kept: "
        "no hand-off was loaded behind a local hit."
    )
    seen = {"LOAD-01": {"external tokens compared": 48}, HANDED_OFF: {HANDED_OFF: 0}}
    assert last(run(always(examination(witnesses=seen)), with_hand_offs())).startswith("NOT SHOWN x.case.json: ")


def test_the_situation_that_has_to_be_seen_is_the_witness_of_a_fix(run: Callable[..., Result]) -> None:
    seen = {"LOAD-01": {"external tokens compared": 48}, HANDED_OFF: {HANDED_OFF: 2}}
    found = run(always(examination(witnesses=seen)), with_hand_offs())
    assert found.exit_code == 0
    assert last(found) == "FIXED x.case.json: META-07 is kept (witnessed: 2 hand-offs behind a local hit)."


def test_a_rule_with_a_check_of_its_own_has_its_own_witness(run: Callable[..., Result]) -> None:
    found = run(always(examination()), with_hand_offs(rules=("LOAD-01",)))
    assert found.exit_code == 0
    assert last(found) == "FIXED x.case.json: LOAD-01 is kept (witnessed: 48 external tokens compared)."


def test_one_rule_is_no_witness_for_another_one(run: Callable[..., Result]) -> None:
    found = run(always(examination()), with_hand_offs(rules=("LOAD-01", "META-07")))
    assert found.exit_code == 1
    assert "nothing shows that META-07 is kept: no hand-off was loaded behind a local hit" in last(found)


def test_a_refusal_to_start_is_no_fix(run: Callable[..., Result]) -> None:
    found = run(raising(Refused("ValueError: no such layout")), case())
    assert found.exit_code == 1
    assert last(found) == "NOT SHOWN x.case.json: the connector refuses this set-up: ValueError: no such layout."


@pytest.mark.parametrize("error", [HungError(5.0, "Thread 0x1: in wait"), CrashedError("exited with code 3", "bye")])
def test_a_hang_or_a_crash_is_still_the_failure(run: Callable[..., Result], error: Exception) -> None:
    found = run(raising(error), case(how="timeout", observations=()))
    assert found.exit_code == 1
    assert last(found) == "FAILED x.case.json: META-07 is still broken."
    assert ("Thread 0x1: in wait" in found.stdout) or ("exited with code 3" in found.stdout)


def test_a_hang_that_has_gone_is_fixed_by_ending(run: Callable[..., Result]) -> None:
    found = run(always(examination(witnesses={})), case(how="timeout", observations=()))
    assert found.exit_code == 0
    assert last(found) == "FIXED x.case.json: the scenario ends, and META-07 is kept."


def test_the_kits_own_failure_accuses_nobody(run: Callable[..., Result]) -> None:
    found = run(raising(KitError("Traceback ...")), case())
    assert found.exit_code == 3
    assert found.stdout == ""
    assert "the kit itself failed; nothing is said about the connector" in found.stderr


def test_the_connector_and_its_settings_come_from_the_command_line_only(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []
    original = playing.replay

    def spy(case: Case, target: object, config: RunConfig, command: str) -> playing.Replay:
        seen.append(config)
        return original(case, target, config, command)  # type: ignore[arg-type]

    monkeypatch.setattr(playing, "replay", spy)
    Path("kv.toml").write_text('kv_role = "kv_producer"\n[kv_connector_extra_config]\nport = "{port}"\n')
    found = run(always(examination()), case(), "--config", "kv.toml", "--timeout", "5")
    assert seen[0].kv_role == "kv_producer"
    assert seen[0].kv_connector_extra_config == {"port": "{port}"}
    assert seen[0].timeout == 5
    assert f"Note: The case is one of {TARGET.id}; it was played with connector:MyConnector." in found.stdout


def test_other_settings_and_versions_are_told(run: Callable[..., Result]) -> None:
    known = case().connector
    mine = case(connector=known.__class__(**{**vars(known), "id": "connector:MyConnector"}), kit="0.0.9")
    found = run(always(examination()), mine)
    assert "Note: The case was found with kvconform 0.0.9; here is 0.1.0." in found.stdout
    assert "Note: The case was found with other settings: kv_connector_extra_config; --config names" in found.stdout


def test_what_a_connector_says_does_not_steer_the_terminal(run: Callable[..., Result]) -> None:
    found = run(raising(Refused("\x1b]0;title\x07 \x1b[2J")), case())
    assert "\x1b" not in found.output
    assert "\x07" not in found.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["replay"], "Missing argument 'CASE'"),
        (["replay", "x.case.json"], "Missing option '--connector'"),
        (["replay", "x.case.json", "--connector", "nowhere:Nothing"], "there is no module 'nowhere'"),
        (["replay", "x.case.json", "--connector", "connector:Other"], "has no class 'Other'"),
        (["replay", "x.case.json", "--connector", "connector:MyConnector", "--config", "no.toml"], "no such file"),
        (["replay", "x.case.json", "--connector", "connector:MyConnector", "--device", "tpu"], "one of auto, cpu"),
        (["replay", "x.case.json", "--connector", "connector:MyConnector", "--timeout", "-1"], "seconds above 0"),
    ],
)
def test_a_usage_error_is_one_sentence_and_exit_code_4(
    args: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("connector.py").write_text("class MyConnector: pass\n")
    Path("x.case.json").write_text(dumps(case()))
    found = CliRunner().invoke(main, args, prog_name="kvconform")
    assert found.exit_code == 4
    assert sentence in found.stderr
    assert found.stdout == ""


CONNECTOR = """
    from kvconform.reference.file_store import FileStoreConnector

    class MyConnector(FileStoreConnector):
        def get_num_new_matched_tokens(self, request, num_computed_tokens):
            count, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
            return {answer}, later

        def reset_cache(self):
            return None
    """
BROKEN = "request.num_tokens - num_computed_tokens if count else 0"


@pytest.fixture
def one_nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replays of this process fork from one process with vLLM imported: importing it takes most of their time."""
    nursery = Nursery("cpu")
    close = nursery.close
    monkeypatch.setattr(nursery, "close", lambda: None)
    monkeypatch.setattr(playing, "Nursery", lambda *_, **__: nursery)
    yield
    close()


@pytest.mark.usefixtures("one_nursery")
def test_a_connector_before_and_after_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with xdist saves the case and names the command; the command says FAILED, and FIXED after the fix."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(dedent(CONNECTOR).format(answer=BROKEN))
    Path("kv.toml").write_text('[kv_connector_extra_config]\npath = "{dir}"\n')
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", "--kvconform=mine.py:MyConnector", "--kvconform-config=kv.toml", "-n", "1",
            "-p", "no:cacheprovider", "-k", "completely_stored_prompt", "--kvconform-cases=kept",
            "--kvconform-coverage", "--kvconform-report=r.json",
        ],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout
    # The hook that the scenario calls was measured in the connector's own process; the other one never ran.
    assert "1 of 2 hooks of the connector were exercised" in run.stdout
    assert "not exercised by any rule: reset_cache" in run.stdout
    measured = read(Path("r.json")).targets[0].coverage
    assert measured is not None
    assert [(hook.name, hook.chapters) for hook in measured.hooks] == [
        ("get_num_new_matched_tokens", ("MATCH",)),
        ("reset_cache", ()),
    ]
    (own,) = [file for file in measured.files if file.file == "mine.py"]
    assert own.missing == ((10, 10),)

    (file,) = Path("kept").glob("MyConnector-MATCH-05-*.case.json")
    command = f"kvconform replay {file} --kvconform=mine.py:MyConnector --config=kv.toml"
    assert f"\n           {command}\n" in run.stdout

    found = CliRunner().invoke(main, command.split()[1:])
    assert found.exit_code == 1, found.output
    assert last(found) == f"FAILED {file}: MATCH-05 is still broken."
    Path("mine.py").write_text(dedent(CONNECTOR).format(answer="count"))
    found = CliRunner().invoke(main, command.split()[1:])
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith(f"FIXED {file}: MATCH-05 is kept (witnessed: ")
