"""Case files: written in bounds, read back whole, and refused with one sentence when they are anything else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from click.testing import CliRunner, Result
from making_cases import FAMILY, PROGRAM, case, examination, finding, save

from kvconform import checks
from kvconform.cases import writer
from kvconform.cases.model import MAX_BYTES, CaseError, from_data, read, to_data
from kvconform.cases.writer import CaseWriter
from kvconform.checks import SITUATIONS_BY_NAME
from kvconform.checks.model import Situation
from kvconform.cli import main
from kvconform.config import RunConfig
from kvconform.rules import load_catalogue
from kvconform.scenario.program import Add, Program, RequestSpec


def replay(file: Path) -> Result:
    return CliRunner().invoke(main, ["replay", str(file), "--connector", "nowhere:Nothing"], prog_name="kvconform")


def changed(**changes: Any) -> dict[str, Any]:
    return {**to_data(case()), **changes}


def program(**changes: Any) -> dict[str, Any]:
    """A case whose scenario differs."""
    data = to_data(case())
    return {**data, "program": {**data["program"], **changes}}


def options(**changes: Any) -> dict[str, Any]:
    known = to_data(case())["program"]["options"]
    return program(options={**known, **changes})


def shape(**changes: Any) -> dict[str, Any]:
    known = to_data(case())["program"]["options"]["shape"]
    return options(shape={**known, **changes})


def situation(*without: str, **changes: Any) -> dict[str, Any]:
    """A case whose situation differs."""
    (known,) = to_data(case())["situations"]
    return changed(situations=[{key: value for key, value in {**known, **changes}.items() if key not in without}])


def of_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """A case as it was written before situations named what has to be seen."""
    old = [{key: value for key, value in known.items() if key != "shown"} for known in data["situations"]]
    return {**data, "format_version": 1, "situations": old}


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_saved_case_reads_back_as_the_scenario_and_its_control(tmp_path: Path) -> None:
    findings = examination("META-07").findings
    file = save(tmp_path / "cases", findings=findings)
    assert file is not None
    found = read(file, load_catalogue())
    assert (found.program, found.rules, found.how) == (PROGRAM, ("META-07",), "fail")
    assert FAMILY.control is not None
    (situation,) = found.situations
    assert situation.control == FAMILY.control(PROGRAM)
    assert found.observations[0].observed == "wrong bytes of META-07"
    assert situation.words == "chunked prefill"


def test_a_special_case_is_kept_with_what_it_is_a_case_of_and_the_rule_that_was_chosen(tmp_path: Path) -> None:
    special = replace(FAMILY, name="special", sort=lambda history, finding: "META-01", general=FAMILY)
    findings = (finding("META-08", "wrong"), replace(finding("META-09", "wrong"), symptom=True))
    file = save(tmp_path, family=special, findings=findings, rules=("META-08", "META-09"))
    assert file is not None
    situations = read(file, load_catalogue()).situations
    assert [(known.name, known.rule) for known in situations] == [("special", "META-09"), (FAMILY.name, "META-07")]


def test_what_has_to_be_seen_is_kept_by_its_name(tmp_path: Path) -> None:
    shown = SITUATIONS_BY_NAME["hand-offs between two caches of this kind"]
    file = save(tmp_path, family=replace(FAMILY, shown=shown, general=FAMILY))
    assert file is not None
    assert [known["shown"] for known in json.loads(file.read_text())["situations"]] == [shown.name, None]
    assert [known.shown for known in read(file, load_catalogue()).situations] == [shown.name, None]


def test_every_situation_of_the_kit_can_be_named_in_a_case() -> None:
    modules = [import_module(f"kvconform.checks.{found.name}") for found in iter_modules(checks.__path__)]
    known = [value for module in modules for value in vars(module).values() if isinstance(value, Situation)]
    assert known
    assert all(SITUATIONS_BY_NAME.get(each.name) is each for each in known)


def test_the_same_failure_has_the_same_name_in_every_run(tmp_path: Path) -> None:
    first = save(tmp_path / "a", findings=examination("META-07").findings)
    again = save(tmp_path / "b", config=RunConfig(seed=7))
    other = save(tmp_path / "b", rules=("META-08",))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.name == again.name
    assert first.name.startswith("MyConnector-META-07-chunked-prefill-")
    assert other.name != first.name


def test_secrets_are_masked_in_settings_and_in_what_the_connector_said(tmp_path: Path) -> None:
    config = RunConfig(kv_connector_extra_config={"password": "hunter2secret", "url": "redis://me:pw@host"})
    findings = (finding("META-07", "login failed for hunter2secret"),)
    file = save(tmp_path, config=config, findings=findings)
    assert file is not None
    text = file.read_text()
    assert "hunter2secret" not in text
    assert "me:pw" not in text
    assert json.loads(text)["connector"]["kv_connector_extra_config"] == {"password": "***", "url": "redis://***@host"}


def test_files_of_earlier_runs_make_room_and_those_of_this_one_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_FILES", 2)
    rules = ("META-01", "META-02", "META-03", "META-04")
    old = [save(tmp_path, rules=(rule,)) for rule in rules[:2]]
    for age, file in ((200, old[0]), (100, old[1])):
        assert file is not None
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    now = CaseWriter(tmp_path, started=old[1].stat().st_mtime + 50)  # type: ignore[union-attr]
    new = [save(tmp_path, rules=(rule,), writer=now) for rule in rules[2:]]
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in new if file}
    assert save(tmp_path, rules=("META-05",), writer=now) is None
    assert save(tmp_path, rules=(rules[3],), writer=now) == new[1]


def test_what_cannot_be_kept_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert save(tmp_path / "file") is None
    large = Program("large", actions=tuple(Add(RequestSpec(f"r{i}", ((i, 16),))) for i in range(3000)))
    assert save(tmp_path, program=large) is None


def test_only_the_kits_own_folder_is_hidden_from_version_control(tmp_path: Path) -> None:
    save(tmp_path / "given")
    save(tmp_path / "own", writer=CaseWriter(tmp_path / "own", own=True))
    assert not (tmp_path / "given" / ".gitignore").exists()
    assert (tmp_path / "own" / ".gitignore").read_text().splitlines()[-1] == "*"


# -- reading ---------------------------------------------------------------------------------------------------------


def test_a_case_of_the_first_version_is_read_and_has_nothing_particular_to_show() -> None:
    found = from_data(of_version_1(to_data(case())), load_catalogue())
    assert found == case()
    assert [known.shown for known in found.situations] == [None]


NESTED: dict[str, Any] = {"id": "r", "prompt": [[1, 4]]}
for _ in range(30):
    NESTED = {"id": "r", "prompt": [[1, 4]], "continues": NESTED}

HOSTILE: dict[str, tuple[Any, str]] = {
    "a list": ([1, 2], 'expected is an object with "format": "kvconform-case"'),
    "a report": ({"format": "kvconform-report"}, 'expected is an object with "format": "kvconform-case"'),
    "another version": (changed(format_version=4), "it has format version 4, and this kvconform reads 1 to 3"),
    "a version that is true": (changed(format_version=True), "it has format version True"),
    "no version": ({"format": "kvconform-case"}, "it has format version None"),
    "an unknown key": (changed(run="os.system"), "the case has the unknown key 'run'"),
    "a key less": ({k: v for k, v in changed().items() if k != "seed"}, "the case lacks the key 'seed'"),
    "a text for a number": (changed(seed="1"), "seed of the case is '1', but expected is a whole number"),
    "a truth for a number": (changed(seed=True), "seed of the case is True, but expected is a whole number"),
    "no rules": (changed(rules=[]), "the case names no rule that was broken"),
    "rules that are numbers": (changed(rules=[1]), "rules of the case is a list, but expected is a list of texts"),
    "too many rules": (changed(rules=["META-07"] * 101), "rules of the case has 101 entries"),
    "an unknown rule": (changed(rules=["NOPE-01"]), "it is about the rule 'NOPE-01', which this kvconform does not"),
    "an unknown outcome": (changed(how="boom"), "how is 'boom', but expected is one of fail, timeout, crash"),
    "a connector that is a text": (changed(connector="os:system"), "connector of the case is 'os:system'"),
    "no situation": (changed(situations=[]), "the case has 0 situations, but expected are 1 to 5"),
    "a situation less a key": (situation("shown"), "a situation lacks the key 'shown'"),
    "a newer key in an older version": ({**changed(), "format_version": 1}, "a situation has the unknown key 'shown'"),
    "an unknown thing to show": (
        situation(shown="os.system"),
        "it has to show 'os.system', a situation that this kvconform does not know.",
    ),
    "a place for a thing to show": (
        situation(shown="kvconform.checks.hand_off_situations:PAGES"),
        "it has to show 'kvconform.checks.hand_off_situations:PAGES', a situation that this kvconform does not know.",
    ),
    "a number for a thing to show": (situation(shown=1), "shown of a situation is 1, but expected is a text"),
    "a situation that is a text": (changed(situations=["x"]), "a situation is 'x', but expected is an object"),
    "a scenario that is a text": (changed(program="rm -rf"), "program of the case is 'rm -rf', but expected is an"),
    "an unknown action": (program(actions=[{"action": "Execute", "code": "1"}]), "not a scenario that kvconform wrote"),
    "an action without a name": (program(actions=[{}]), "not a scenario that kvconform wrote"),
    "actions that are a number": (program(actions=3), "not a scenario that kvconform wrote"),
    "an unknown key of the scenario": (program(module="os"), "not a scenario that kvconform wrote"),
    "a number as text": (options(max_num_seqs="16"), "program.options.max_num_seqs is '16', which is nothing that"),
    "a fraction": (options(max_num_seqs=16.5), "program.options.max_num_seqs is 16.5, which is nothing that"),
    "a text for a truth": (program(twin="no"), "program.twin is 'no', which is nothing that kvconform writes there"),
    "a layout that vLLM lacks": (shape(layout="XYZ"), "not a scenario that kvconform wrote"),
    "a cache that fills the machine": (shape(num_blocks=10**12), "its KV cache has 2,048,000,000,000,000 bytes"),
    "endless steps": (program(actions=[{"action": "Step", "count": 10**9}]), "it runs 1,000,000,000 steps"),
    "steps backwards": (program(actions=[{"action": "Step", "count": -1}]), "it runs -1 steps"),
    "too many actions": (program(actions=[{"action": "Drain"}] * 5001), "it has 5,001 actions"),
    "an endless prompt": (
        program(actions=[{"action": "Add", "request": {"id": "r", "prompt": [[1, 10**9]]}}]),
        "its requests have 1,000,000,001 tokens",
    ),
    "a negative prompt": (
        program(actions=[{"action": "Add", "request": {"id": "r", "prompt": [[1, -5]]}}]),
        "the request 'r' has a prompt or a max_tokens that no request can have",
    ),
    "no prompt": (
        program(actions=[{"action": "Add", "request": {"id": "r", "prompt": []}}]),
        "the request 'r' has a prompt or a max_tokens that no request can have",
    ),
    "an endless step budget": (options(max_num_batched_tokens=10**9), "max_num_batched_tokens is 1,000,000,000"),
    "turns upon turns": (
        program(actions=[{"action": "Add", "request": NESTED}]),
        "the request 'r' has a prompt or a max_tokens that no request can have",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused_with_one_sentence(tmp_path: Path, name: str) -> None:
    data, sentence = HOSTILE[name]
    file = tmp_path / "x.case.json"
    file.write_text(json.dumps(data))
    done = replay(file)
    assert done.exit_code == 4, done.output
    assert done.stderr.startswith(f"Error: {file}: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 600
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is not JSON"),
        (json.dumps(changed())[:-200], "it is not JSON"),
        ("[" * 100_000, "it is nested too deeply for a case"),
        ('{"format": "kvconform-case", "format_version": 1, "x": ' + "[" * 100 + "]" * 100 + "}", "nested too deeply"),
        ('{"format": "kvconform-case", "format": "kvconform-case"}', "the key 'format' twice"),
        ('{"format": NaN}', "NaN, which is not JSON"),
        ('{"format": ' + "9" * 5000 + "}", "it is not JSON"),
        ("x" * (MAX_BYTES + 1), "it is larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_plain_json_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "x.case.json"
    file.write_text(text)
    done = replay(file)
    assert done.exit_code == 4
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_that_are_not_there_or_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\x04\x95")
    assert "there is no such file" in replay(tmp_path / "none").stderr
    assert "not UTF-8 text" in replay(tmp_path / "binary").stderr
    assert "it cannot be read" in replay(tmp_path).stderr
    assert replay(tmp_path).exit_code == 4


def test_every_single_change_of_a_value_is_read_or_refused_but_never_breaks() -> None:
    """Each value in turn becomes something else."""
    data = to_data(case())
    refusals = []
    for path in _paths(data):
        for value in (None, -1, 10**30, "x", [], {}, [[]], 0.5, True):
            copy = json.loads(json.dumps(data))
            spot = copy
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = value
            try:
                from_data(copy, load_catalogue())
            except CaseError as error:
                refusals.append(str(error))
    assert len(refusals) > 500
    assert not [sentence for sentence in refusals if "\n" in sentence or len(sentence) > 500]


def _paths(data: Any) -> list[list[Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path for key, value in items for path in ([key], *([key, *rest] for rest in _paths(value)))]
