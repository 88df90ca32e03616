"""Examples of failures for the rule book: what the kit said about connectors that were broken on purpose."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "examples.toml"


@dataclass(frozen=True)
class Example:
    """One failure. ``defect`` says what is wrong with the connector."""

    rule: str
    defect: str
    expected: str
    observed: str


@cache
def load_examples() -> Mapping[str, Example]:
    """Rule id -> example; not every rule has one."""
    if not _FILE.is_file():
        return {}
    entries = tomllib.loads(_FILE.read_text(encoding="utf-8"))["example"]
    return {entry["rule"]: Example(**entry) for entry in entries}
