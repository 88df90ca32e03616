"""The ladder of levels: what a connector has earned, over all rules that its vLLM release requires.

A rule is required if it holds for the release and a test of the suites checks it, whether that test ran or not. The
ladder is described in docs/reports.md.

* ``core``: every required MUST of the base, and of the kinds of load that the connector has, is kept.
* each further capability that the connector shows is earned by its own required MUSTs.
* ``strict``: core, every capability that was shown is earned, and no SHOULD is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvconform.capabilities import OF_EVERY_CONNECTOR, Capability
from kvconform.verdicts import Verdict

NONE, CORE, STRICT = "none", "core", "strict"
LOADS: tuple[str, ...] = ("sync-load", "async-load")

#: Verdicts that do not stand in a level's way.
_KEPT = frozenset({Verdict.PASS.value, Verdict.NOT_APPLICABLE.value})


@dataclass(frozen=True)
class Judged:
    """A required rule as far as a level depends on it; ``verdict`` is one of a report's verdicts."""

    rule: str
    level: str
    capability: str
    verdict: str


@dataclass(frozen=True)
class Level:
    """What was earned. ``lacking`` says what core (or, with core, strict) wants: "RULE (verdict)", or a sentence."""

    name: str = NONE
    capabilities: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    #: How many required rules there are.
    required: int = 0

    def __str__(self) -> str:
        return " + ".join([self.name, *self.capabilities]) if self.name != NONE else "none"


NOTHING_EARNED = Level()


def assess(required: Iterable[Judged], capabilities: Sequence[Capability]) -> Level:
    """Climb the ladder.

    Args:
        required: every required rule with its verdict, those that were not run included.
        capabilities: what the connector declares and showed.
    """
    rules = tuple(required)
    musts = [rule for rule in rules if rule.level == "MUST"]
    shown = [row.name for row in capabilities if row.exercised]
    loads = [name for name in LOADS if name in shown]
    base = OF_EVERY_CONNECTOR.union(LOADS)
    lacking = [_text(rule) for rule in musts if rule.capability in base and rule.verdict not in _KEPT]
    if not loads:
        lacking.insert(0, "no load of stored KV was seen")
    if lacking:
        return Level(NONE, (), tuple(lacking), len(rules))
    earned, owed = list(loads), []
    for name in (name for name in shown if name not in base):
        own = [rule for rule in musts if rule.capability == name]
        open_rules = [_text(rule) for rule in own if rule.verdict not in _KEPT]
        owed += open_rules
        if own and not open_rules:
            earned.append(name)
    owed += [f"{row.name} ({row.state})" for row in capabilities if row.declared and not row.exercised]
    owed += [_text(rule) for rule in rules if rule.level == "SHOULD" and rule.verdict not in _KEPT]
    return Level(CORE if owed else STRICT, tuple(earned), tuple(owed), len(rules))


def _text(rule: Judged) -> str:
    return f"{rule.rule} ({rule.verdict})"
