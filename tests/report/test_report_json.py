"""The JSON form: its schema, its digest, and reading what others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from making import EXPECTED, MUSTS, TARGET, as_data, everything, make, result, sealed

from kvconform.report.building import RunFacts
from kvconform.report.document import VERDICTS, Document
from kvconform.report.json_report import (
    ReportError,
    digest,
    dumps,
    from_data,
    parse,
    read,
    report_schema,
    schema_problems,
    to_data,
    write_text,
)
from kvconform.verdicts import RuleResult, Verdict

texts = st.text(st.characters(codec=None), max_size=40)
results = st.lists(
    st.builds(
        RuleResult,
        rule=st.sampled_from([*EXPECTED[:12], "ACME-1"]),
        target=st.sampled_from([TARGET, ""]),
        verdict=st.sampled_from(list(Verdict)),
        nodeid=st.sampled_from(["test_a", "test_b", "test_c"]),
        witnesses=st.dictionaries(texts.filter(lambda t: t.isprintable()), st.integers(0, 10**9), max_size=3),
        message=texts,
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=30)
@given(results)
def test_a_report_survives_the_round_trip(found: list[RuleResult]) -> None:
    document = make(found)
    data = parse(dumps(document))
    assert schema_problems(data) == []
    assert data["digest"] == digest(data)
    assert from_data(data) == document


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_change_of_a_value_changes_the_digest(draws: st.DataObject) -> None:
    data = as_data(everything())
    data.pop("digest")
    before = digest(data)
    place: Any = data
    while True:
        key = draws.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    place[key] = "another value" if place[key] != "another value" else 0
    assert digest(data) != before


def test_the_layout_of_the_file_does_not_change_the_digest() -> None:
    data = as_data(everything())
    again = json.loads(json.dumps(dict(reversed(list(data.items()))), indent=7, ensure_ascii=False))
    again["targets"][0]["options"]["timeout"] = 60  # as other languages write 60.0
    assert digest(again) == data["digest"]


def test_the_schema_is_one_and_closed() -> None:
    schema = report_schema()
    Draft202012Validator.check_schema(schema)

    def objects(node: Any) -> list[dict[str, Any]]:
        if isinstance(node, list):
            return [found for entry in node for found in objects(entry)]
        if not isinstance(node, dict):
            return []
        own = [node] if node.get("type") == "object" and "properties" in node else []
        return own + [found for entry in node.values() for found in objects(entry)]

    found = objects(schema)
    assert len(found) > 10
    assert all(one["additionalProperties"] is False for one in found)
    # Reports of before --kvconform-bench, and of before there were trials, have no such keys, and are still read.
    assert all(set(one["properties"]) - set(one["required"]) <= {"bench", "trials"} for one in found)
    assert all(set(one["required"]) <= set(one["properties"]) for one in found)


def test_the_schema_knows_every_verdict_and_reason() -> None:
    assert set(report_schema()["$defs"]["entry"]["properties"]["verdict"]["enum"]) == set(VERDICTS)
    assert RunFacts.__dataclass_fields__.keys() >= {"deselected_by", "stopped_by"}


def _set(path: str, value: object) -> Any:
    def change(data: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = data
        for part in way:
            place = place[int(part)] if part.isdigit() else place[part]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_set("extra", 1), "extra"),
        (_set("run.exit_status", "0"), "run.exit_status: '0' is not of type 'integer'."),
        (_set("targets.0.rules.0.verdict", "passed"), "targets[0].rules[0].verdict: 'passed' is not one of"),
        (_set("targets.0.rules.0.level", "must"), "targets[0].rules[0].level"),
        (_set("run.started", "yesterday"), "run.started: 'yesterday' does not match"),
        (_set("kit.rules_digest", "0"), "kit.rules_digest"),
        (_set("format", "other"), "it is not a report of kvconform"),
        (_set("format_version", 2), "it has format version 2, and this kvconform reads 1"),
        (_set("run.partial", False), "run.partial_reasons"),
    ],
)
def test_the_schema_refuses_with_the_place(change: Any, sentence: str) -> None:
    data = as_data(everything())
    change(data)
    assert any(sentence in problem for problem in schema_problems(data)), schema_problems(data)


def test_a_pass_without_witnesses_is_no_report() -> None:
    data = as_data(make([result(MUSTS[0], Verdict.PASS)]))
    passed = next(one for one in data["targets"][0]["rules"] if one["verdict"] == "pass")
    passed["witnesses"] = {}
    assert schema_problems(data)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": NaN}', "NaN"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "it is not JSON"),
    ],
)
def test_json_that_readers_could_disagree_about_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ReportError, match=sentence):
        parse(text)


@pytest.mark.parametrize("data", [[], None, "x", {}, {"format": "kvconform-report"}, 3])
def test_anything_else_is_no_report(data: object) -> None:
    assert len(schema_problems(data)) == 1


def test_reading_a_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    write_text(good, dumps(everything()))
    assert read(good) == everything()

    data = json.loads(good.read_text())
    data["targets"][0]["rules"][1]["verdict"] = "kit error"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(data))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for file, sentence in (
        (changed, "its digest does not match"),
        (tmp_path / "none.json", "there is no such file"),
        (binary, "not UTF-8"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(ReportError, match=sentence) as caught:
            read(file)
        assert str(caught.value).startswith(str(file))
    changed.write_text(json.dumps(sealed(data)))
    assert isinstance(read(changed), Document)


def test_the_file_is_written_at_once_and_readable(tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.json"
    write_text(file, "1")
    write_text(file, "2")
    assert file.read_text() == "2"
    assert [path.name for path in file.parent.iterdir()] == ["report.json"]
    assert file.stat().st_mode & 0o400


def test_every_key_of_the_data_is_in_the_file() -> None:
    assert list(to_data(everything())) == list(report_schema()["properties"])
