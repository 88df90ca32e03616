"""``kvconform init``: what it writes is accepted by what reads it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from kvconform.cli import main
from kvconform.commands.starting import CONFIG, WORKFLOW
from kvconform.config import KEYS, read_run_config
from kvconform.placeholders import placeholders


@pytest.fixture(autouse=True)
def _in_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "connector.py").write_text("class MyConnector: pass\n")


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["init", *args], prog_name="kvconform")


def commands() -> list[list[str]]:
    """Every command of the workflow's steps, in words."""
    workflow: dict[str, Any] = yaml.safe_load(Path(WORKFLOW).read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def test_the_configuration_is_accepted_and_names_the_connector() -> None:
    found = run("--connector", "connector.py:MyConnector")
    assert found.exit_code == 0, found.output
    config = read_run_config({}, Path(CONFIG), None)
    assert config.connector == ("connector.py:MyConnector",)
    assert config.timeout == 60
    assert config.kv_connector_extra_config == {}


def test_every_line_that_is_commented_out_is_accepted_too() -> None:
    assert run().exit_code == 0
    text = re.sub(r"^# (?=[a-zA-Z_]+ = )", "", Path(CONFIG).read_text(), flags=re.MULTILINE)
    Path("full.toml").write_text(text)
    config = read_run_config({}, Path("full.toml"), None)
    assert set(KEYS) - config.explicit == {"engine", "device", "budget", "seed"}
    assert placeholders(config.kv_connector_extra_config) == {"dir", "port"}
    assert config.capabilities == ("sync-load", "persistence")
    assert config.env == {"MY_STORE_MODE": "test"}
    assert config.engine_env == {"MY_SIDE_CHANNEL_PORT": "{port}"}


def test_the_commands_of_the_workflow_exist_with_their_options(pytestconfig: pytest.Config) -> None:
    assert run().exit_code == 0
    found = commands()
    names = {name for group in pytestconfig._parser._groups for option in group.options for name in option.names()}
    tests = [words for words in found if words[0] == "pytest"]
    assert len(tests) == 2
    for words in tests:
        given = {word.partition("=")[0] for word in words if word.startswith("--kvconform")}
        assert given
        assert given <= names
        assert f"--kvconform-config={CONFIG}" in words
    own = [words for words in found if words[0] == "kvconform"]
    assert {words[1] for words in own} == {"report", "verify"}
    for words in own:
        command = main.commands[words[1]]
        options = {name for option in command.params if isinstance(option, click.Option) for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_the_workflow_is_valid_and_keeps_the_report_however_the_tests_end() -> None:
    assert run().exit_code == 0
    workflow = yaml.safe_load(Path(WORKFLOW).read_text())
    assert set(workflow[True]) == {"push", "pull_request", "schedule"}  # YAML 1.1 reads "on" as true
    steps = workflow["jobs"]["conformance"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    assert [step["if"] for step in steps[-2:]] == ["always()", "always()"]


def test_nothing_is_written_over_without_force() -> None:
    Path(CONFIG).write_text("# mine")
    found = run()
    assert found.exit_code == 4
    assert f"{CONFIG} is there already: --force writes over" in found.stderr
    assert Path(CONFIG).read_text() == "# mine"
    assert not Path(WORKFLOW).exists()
    assert run("--force").exit_code == 0
    assert "connector" in Path(CONFIG).read_text()
    assert f"{CONFIG} and {WORKFLOW} are there already" in run().stderr


def test_another_folder_is_made_and_told() -> None:
    found = run("deep/er")
    assert found.exit_code == 0
    assert Path("deep/er", CONFIG).is_file()
    assert Path("deep/er", WORKFLOW).is_file()
    assert found.stdout.splitlines()[-1].endswith("pytest --kvconform-config=deep/er/kvconform.toml")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--connector", "nowhere:X"), "there is no module 'nowhere'"),
        (("--connector", "connector.py:Other"), "has no class 'Other'"),
        (("connector.py",), "this is a file; give the path of a folder"),
    ],
)
def test_a_usage_error_is_one_sentence_and_writes_nothing(args: tuple[str, ...], sentence: str) -> None:
    found = run(*args)
    assert found.exit_code == 4
    assert sentence in found.stderr
    assert not Path(CONFIG).exists()


def test_a_path_with_quotes_is_written_so_that_it_reads_back() -> None:
    Path('it"s').mkdir()
    Path('it"s', "c.py").write_text("class C: pass\n")
    assert run("--connector", 'it"s/c.py:C').exit_code == 0
    assert read_run_config({}, Path(CONFIG), None).connector == ('it"s/c.py:C',)
