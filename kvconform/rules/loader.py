"""From TOML files to a checked :class:`Catalogue`.

The shape of a file is published as a JSON schema (``catalogue.schema.json``); what a schema can't say
(prefixes, duplicates, ends of a range) is checked here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kvconform.rules.model import CHAPTERS, Catalogue, Chapter, Evidence, Rule, release_key

_HERE = Path(__file__).parent


class CatalogueError(ValueError):
    """A file of the catalogue is wrong. The message names the file, the rule and the key."""

    def __init__(self, file: str, rule: str | None, key: str | None, problem: str) -> None:
        where = ", ".join(part for part in (file, rule, key and f"key {key!r}") if part)
        super().__init__(f"{where}: {problem}")
        self.file, self.rule, self.key, self.problem = file, rule, key, problem


@cache
def load_catalogue() -> Catalogue:
    """The catalogue that ships with this package. Read once per process.

    Raises:
        CatalogueError: a file is wrong.
    """
    return read_catalogue(_HERE / "catalogue")


def catalogue_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of one catalogue file."""
    schema: dict[str, Any] = json.loads((_HERE / "catalogue.schema.json").read_text(encoding="utf-8"))
    return schema


def read_catalogue(folder: Path) -> Catalogue:
    """Read and check every ``*.toml`` of a folder.

    Raises:
        CatalogueError: a file is wrong, or the folder has none.
    """
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise CatalogueError(folder.name, None, None, "this folder has no catalogue file (*.toml)")
    validate = _Validator()
    chapters = [_read_chapter(file, validate) for file in files]
    return Catalogue(tuple(sorted(chapters, key=lambda chapter: CHAPTERS.index(chapter.id))))


def _read_chapter(file: Path, validate: _Validator) -> Chapter:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(file.name, None, None, f"not a TOML file: {error}") from error
    validate(file.name, data)
    head = data["chapter"]
    chapter_id: str = head["id"]
    if file.name != f"{chapter_id.lower()}.toml":
        raise CatalogueError(
            file.name, None, "chapter.id", f"chapter {chapter_id} belongs into {chapter_id.lower()}.toml"
        )
    rules = [_to_rule(entry) for entry in data["rule"]]
    _check_rules(file.name, chapter_id, rules)
    return Chapter(chapter_id, head["title"], head["about"], tuple(sorted(rules, key=lambda rule: rule.id)))


def _to_rule(entry: dict[str, Any]) -> Rule:
    plain = {key: value for key, value in entry.items() if key not in ("evidence", "related")}
    evidence = tuple(Evidence(**item) for item in entry["evidence"])
    return Rule(**plain, evidence=evidence, related=tuple(entry.get("related", ())))


def _check_rules(file: str, chapter_id: str, rules: Iterable[Rule]) -> None:
    seen: set[str] = set()
    for rule in rules:
        if rule.chapter != chapter_id:
            raise CatalogueError(file, rule.id, "id", f"expected an id that starts with '{chapter_id}-'")
        if rule.id in seen:
            raise CatalogueError(file, rule.id, "id", "this id is used twice")
        seen.add(rule.id)
        if rule.until is not None and release_key(rule.until) < release_key(rule.since):
            raise CatalogueError(file, rule.id, "until", f"{rule.until} is older than 'since', which is {rule.since}")
        if rule.id in rule.related:
            raise CatalogueError(file, rule.id, "related", "a rule can't be related to itself")


class _Validator:
    """The published schema, with messages that say what to change."""

    def __init__(self) -> None:
        # Imported late: whoever only needs the model shouldn't pay for it.
        from jsonschema import Draft202012Validator

        self._validator = Draft202012Validator(catalogue_schema())

    def __call__(self, file: str, data: dict[str, Any]) -> None:
        errors = sorted(self._validator.iter_errors(data), key=lambda error: [str(p) for p in error.absolute_path])
        if errors:
            error = errors[0]
            rule, key = _locate(data, list(error.absolute_path))
            raise CatalogueError(file, rule, key, _explain(error.validator, error.validator_value, error))


def _locate(data: dict[str, Any], path: Sequence[str | int]) -> tuple[str | None, str | None]:
    """Name of the rule and dotted key that a path of the schema validation points to."""
    if len(path) >= 2 and path[0] == "rule" and isinstance(path[1], int):
        entry = data["rule"][path[1]]
        named = isinstance(entry, dict) and isinstance(entry.get("id"), str)
        rule = str(entry["id"]) if named else f"rule number {path[1] + 1}"
        return rule, ".".join(map(str, path[2:])) or None
    return None, ".".join(map(str, path)) or None


def _explain(kind: object, expected: Any, error: Any) -> str:
    """One clause: what was given and what is expected."""
    given = error.instance
    match kind:
        case "required":
            return f"missing {', '.join(repr(name) for name in expected if name not in given)}"
        case "additionalProperties":
            known = set(error.schema["properties"])
            unknown = ", ".join(repr(name) for name in sorted(set(given) - known))
            return f"unknown key {unknown}; known keys are {', '.join(sorted(known))}"
        case "enum":
            return f"{given!r} is not one of {', '.join(map(str, expected))}"
        case "maxLength":
            return f"{len(given)} characters, at most {expected} are allowed"
        case "minItems":
            return f"at least {expected} entry is needed"
        case "pattern":
            return f"{given!r} is not {error.schema.get('description', 'of the form ' + str(expected))}"
        case _:
            return str(error.message)
