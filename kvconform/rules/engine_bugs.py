"""Known defects of vLLM itself, per release, as data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from kvconform.rules.model import Evidence, release_key


@dataclass(frozen=True)
class EngineBug:
    """A defect of the engine that a scenario can meet.

    ``situation`` says by what it is recognised in a history; both ends of since..until are included, and without
    ``until`` no release is known that is free of it.
    """

    id: str
    title: str
    sentence: str
    situation: str
    since: str
    advice: str
    evidence: tuple[Evidence, ...]
    until: str | None = None

    def affects(self, release: str) -> bool:
        """Whether a vLLM release has it.

        Raises:
            ValueError: not a version number.
        """
        key = release_key(release)
        return release_key(self.since) <= key and (self.until is None or key <= release_key(self.until))


@cache
def load_engine_bugs() -> tuple[EngineBug, ...]:
    """Every known defect, in the order of the file. Raises TypeError for an unknown or a missing key."""
    text = (resources.files("kvconform.rules") / "known_engine_bugs.toml").read_text(encoding="utf-8")
    return tuple(
        EngineBug(
            **{key: _folded(value) for key, value in entry.items() if key != "evidence"},
            evidence=tuple(Evidence(**item) for item in entry["evidence"]),
        )
        for entry in tomllib.loads(text)["bug"]
    )


def _folded(text: str) -> str:
    return " ".join(text.split())
