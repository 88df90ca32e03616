"""Reading catalogue files: what is accepted, and that every refusal names the file, the rule and the key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvconform.rules import CAPABILITIES, CHAPTERS, LEVELS, Catalogue, CatalogueError, UnknownRuleError, read_catalogue
from kvconform.rules.loader import catalogue_schema
from kvconform.rules.model import MAX_SENTENCE, release_key

EVIDENCE = {"release": "0.32.0", "file": "vllm/v1/core/sched/scheduler.py", "symbol": "Scheduler.schedule"}
RULE = {
    "id": "MATCH-05",
    "level": "MUST",
    "sentence": "Leave one token.",
    "consequence": "The engine dies.",
    "since": "0.9.2",
    "capability": "sync-load",
    "fix": "Subtract one.",
    "evidence": [EVIDENCE],
}
CHAPTER = {"id": "MATCH", "title": "The match query", "about": "About matching."}

Document = dict[str, Any]


def document() -> Document:
    return copy.deepcopy({"chapter": CHAPTER, "rule": [RULE, {**RULE, "id": "MATCH-07", "level": "MAY"}]})


def to_toml(data: Document) -> str:
    """Enough TOML for a catalogue file; JSON strings, numbers and arrays of strings are TOML as well."""

    def pairs(table: dict[str, Any]) -> list[str]:
        return [f"{key} = {json.dumps(value)}" for key, value in table.items() if key != "evidence"]

    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if key not in ("chapter", "rule")]
    if "chapter" in data:
        lines += ["[chapter]", *pairs(data["chapter"])]
    for rule in data.get("rule", ()):
        lines += ["[[rule]]", *pairs(rule)]
        for evidence in rule.get("evidence", ()):
            lines += ["[[rule.evidence]]", *pairs(evidence)]
    return "\n".join(lines) + "\n"


def read(folder: Path, data: Document, name: str = "match.toml") -> Catalogue:
    (folder / name).write_text(to_toml(data), encoding="utf-8")
    return read_catalogue(folder)


def test_a_complete_file_is_read(tmp_path: Path) -> None:
    data = document()
    data["rule"][0] |= {"until": "0.17.1", "related": ["R2", "MATCH-07"], "notes": "Legal.", "unchecked": "No engine."}
    data["rule"][0]["evidence"][0]["note"] = "assert"
    catalogue = read(tmp_path, data)
    rule = catalogue.rule("MATCH-05")
    assert [r.id for r in catalogue.rules] == ["MATCH-05", "MATCH-07"]
    assert (rule.chapter, rule.level, rule.capability) == ("MATCH", "MUST", "sync-load")
    assert (rule.since, rule.until, rule.related) == ("0.9.2", "0.17.1", ("R2", "MATCH-07"))
    assert (rule.notes, rule.unchecked) == ("Legal.", "No engine.")
    assert rule.evidence[0].symbol == "Scheduler.schedule"
    assert rule.evidence[0].note == "assert"
    assert catalogue.chapter("match").title == "The match query"


def test_optional_keys_have_defaults(tmp_path: Path) -> None:
    rule = read(tmp_path, document()).rule("MATCH-05")
    assert (rule.until, rule.related, rule.notes, rule.unchecked) == (None, (), "", None)


def test_chapters_come_in_reading_order_and_rules_by_number(tmp_path: Path) -> None:
    data = document()
    data["rule"].reverse()
    (tmp_path / "match.toml").write_text(to_toml(data), encoding="utf-8")
    other = {"chapter": {**CHAPTER, "id": "SIG"}, "rule": [{**RULE, "id": "SIG-01"}]}
    catalogue = read(tmp_path, other, "sig.toml")
    assert [rule.id for rule in catalogue] == ["SIG-01", "MATCH-05", "MATCH-07"]


def _set(*path: str | int, value: object) -> Callable[[Document], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


def _drop(*path: str | int) -> Callable[[Document], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]

    return change


REFUSED: list[tuple[str, Callable[[Document], None], str | None, str | None, str]] = [
    ("unknown key of a rule", _set("rule", 1, "sice", value="0.9.2"), "MATCH-07", None, "unknown key 'sice'"),
    ("unknown key of the file", _set("rules", value="x"), None, None, "unknown key 'rules'"),
    ("unknown key of the chapter", _set("chapter", "text", value="x"), None, "chapter", "unknown key 'text'"),
    ("unknown key of evidence", _set("rule", 0, "evidence", 0, "line", value=3), "MATCH-05", "evidence.0", "'line'"),
    ("wrong prefix", _set("rule", 1, "id", value="ALLOC-07"), "ALLOC-07", "id", "starts with 'MATCH-'"),
    ("malformed id", _set("rule", 1, "id", value="MATCH-7"), "MATCH-7", "id", "a rule id such as"),
    ("duplicate id", _set("rule", 1, "id", value="MATCH-05"), "MATCH-05", "id", "used twice"),
    ("id is no text", _set("rule", 1, "id", value=7), "rule number 2", "id", "not of type 'string'"),
    ("bad level", _set("rule", 0, "level", value="must"), "MATCH-05", "level", "not one of MUST, SHOULD, MAY"),
    ("bad since", _set("rule", 0, "since", value="0.9"), "MATCH-05", "since", "a release number such as"),
    ("since is a number", _set("rule", 0, "since", value=0.9), "MATCH-05", "since", "not of type 'string'"),
    ("bad until", _set("rule", 0, "until", value="latest"), "MATCH-05", "until", "a release number such as"),
    ("until before since", _set("rule", 0, "until", value="0.8.10"), "MATCH-05", "until", "older than 'since'"),
    ("bad evidence release", _set("rule", 0, "evidence", 0, "release", value="v1"), "MATCH-05", None, "release number"),
    ("unknown capability", _set("rule", 0, "capability", value="sync"), "MATCH-05", "capability", "not one of base"),
    ("no evidence", _drop("rule", 0, "evidence"), "MATCH-05", None, "missing 'evidence'"),
    ("no sentence", _drop("rule", 0, "sentence"), "MATCH-05", None, "missing 'sentence'"),
    ("no chapter", _drop("chapter"), None, None, "missing 'chapter'"),
    ("no rules", _drop("rule"), None, None, "missing 'rule'"),
    ("no symbol", _drop("rule", 0, "evidence", 0, "symbol"), "MATCH-05", "evidence.0", "missing 'symbol'"),
    ("no period", _set("rule", 0, "sentence", value="Leave one token"), "MATCH-05", "sentence", "ends with a period"),
    ("no period in fix", _set("rule", 0, "fix", value="Subtract one"), "MATCH-05", "fix", "ends with a period"),
    ("long", _set("rule", 0, "sentence", value="a" * MAX_SENTENCE + "."), "MATCH-05", "sentence", "241 characters"),
    ("bad file", _set("rule", 0, "evidence", 0, "file", value="/x/vllm/a.py"), "MATCH-05", None, "a path such as"),
    ("bad related", _set("rule", 0, "related", value=["R34"]), "MATCH-05", "related.0", "R1 to R33"),
    ("related to itself", _set("rule", 0, "related", value=["MATCH-05"]), "MATCH-05", "related", "itself"),
    ("unknown chapter", _set("chapter", "id", value="CATCH"), None, "chapter.id", "not one of SIG"),
    ("empty reason", _set("rule", 0, "unchecked", value=""), "MATCH-05", "unchecked", "ends with a period"),
]


@pytest.mark.parametrize(
    ("change", "rule", "key", "problem"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_wrong_file_is_refused_with_file_rule_and_key(
    tmp_path: Path, change: Callable[[Document], None], rule: str | None, key: str | None, problem: str
) -> None:
    data = document()
    change(data)
    with pytest.raises(CatalogueError) as caught:
        read(tmp_path, data)
    error = caught.value
    assert error.file == "match.toml"
    assert error.rule == rule
    assert key is None or error.key == key
    assert problem in error.problem
    assert str(error).startswith(", ".join(part for part in ("match.toml", rule) if part))


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "match.toml").write_text("[chapter\n", encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"^match\.toml: not a TOML file: .*line 1"):
        read_catalogue(tmp_path)


def test_no_evidence_entry_is_refused(tmp_path: Path) -> None:
    text = to_toml(document()).split("[[rule.evidence]]")[0] + "evidence = []\n"
    (tmp_path / "match.toml").write_text(text, encoding="utf-8")
    with pytest.raises(CatalogueError, match="MATCH-05, key 'evidence': at least 1 entry"):
        read_catalogue(tmp_path)


def test_a_chapter_in_the_wrong_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"^alloc\.toml, key 'chapter\.id': chapter MATCH belongs into match"):
        read(tmp_path, document(), "alloc.toml")


def test_a_folder_without_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="no catalogue file"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    ("release", "ids"),
    [
        ("0.9.1", []),
        ("0.9.2", ["MATCH-05"]),
        ("0.10.2", ["MATCH-05"]),  # a comparison of texts would say no
        ("0.17.1", ["MATCH-05", "MATCH-07"]),
        ("0.17.1.post1", ["MATCH-05", "MATCH-07"]),
        ("0.17.2", ["MATCH-07"]),
        ("0.33.0rc1", ["MATCH-07"]),
        ("0.32.1.dev3+gabc123", ["MATCH-07"]),
        ("1.0", ["MATCH-07"]),
    ],
)
def test_applicable_includes_both_ends(tmp_path: Path, release: str, ids: list[str]) -> None:
    data = document()
    data["rule"][0]["until"] = "0.17.1"
    data["rule"][1]["since"] = "0.17.1"
    assert [rule.id for rule in read(tmp_path, data).applicable(release)] == ids


def test_a_release_that_is_no_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'newest' is not a vLLM release number"):
        read(tmp_path, document()).applicable("newest")


def test_release_key_orders_numbers_not_texts() -> None:
    assert release_key("0.9.2") < release_key("0.10.2") < release_key("0.33.0") == release_key("0.33.0rc1")


@pytest.mark.parametrize("spelling", ["MATCH-05", "match-05", "match-5", " MATCH-05 "])
def test_rules_are_found_in_any_spelling(tmp_path: Path, spelling: str) -> None:
    assert read(tmp_path, document()).rule(spelling).id == "MATCH-05"


def test_an_unknown_rule_is_a_key_error_with_close_matches(tmp_path: Path) -> None:
    catalogue = read(tmp_path, document())
    with pytest.raises(KeyError) as caught:
        catalogue.rule("MATHC-05")
    assert isinstance(caught.value, UnknownRuleError)
    assert caught.value.suggestions[0] == "MATCH-05"
    assert str(caught.value) == "There is no rule 'MATHC-05'; did you mean MATCH-05 or MATCH-07?"
    with pytest.raises(UnknownRuleError, match="lists them all"):
        catalogue.rule("zzz")


def test_digest_ignores_formatting_and_order_but_no_content(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    for folder in (first, second, third):
        folder.mkdir()
    data = document()
    digest = read(first, data).digest()
    shuffled = {"rule": [dict(reversed(rule.items())) for rule in reversed(data["rule"])], "chapter": data["chapter"]}
    assert read(second, shuffled).digest() == digest
    data["rule"][1]["notes"] = "Changed."
    assert read(third, data).digest() != digest
    assert len(digest) == 64


def test_the_digest_of_known_content_never_changes(tmp_path: Path) -> None:
    # Reports of different machines and kit versions are compared by it.
    assert read(tmp_path, document()).digest() == "6eb0cb82097b82835f55520afd883765f82287f5d0e6312375f5d6ce24f1b150"


def test_schema_and_model_agree() -> None:
    schema = catalogue_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    rule = schema["$defs"]["rule"]["properties"]
    assert tuple(rule["level"]["enum"]) == LEVELS
    assert tuple(rule["capability"]["enum"]) == CAPABILITIES
    assert tuple(schema["properties"]["chapter"]["properties"]["id"]["enum"]) == CHAPTERS
    assert rule["sentence"]["maxLength"] == MAX_SENTENCE
