"""How a test says what it found: the three exceptions, and :func:`record`.

A test names the rules that it checks with ``@pytest.mark.kvconform_rules("MATCH-05", ...)``. Then

* it calls :func:`record` for every rule that it came to a verdict on, with the witnesses of a pass;
* or it raises :class:`ConformanceFailure`, :class:`Inconclusive` or :class:`NotApplicable`, which settle the named
  rules that were not recorded.

A named rule that a passing test did not record is inconclusive: without a witness nothing was shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from kvconform.picture import Picture
from kvconform.verdicts import RuleResult, Verdict

# mypy doesn't see pytest's exception as a class.
if TYPE_CHECKING:
    _Skipped = BaseException
else:
    _Skipped = pytest.skip.Exception

#: Key of the entries in ``report.user_properties``; the values are JSON, so they survive xdist and JUnit files.
PROPERTY = "kvconform"


class ConformanceFailure(AssertionError):
    """The connector broke a rule. pytest shows ``text`` and nothing else.

    Args:
        text: a failure text that needs no knowledge of the kit.
        rules: the rules that are broken; by default the named ones that the test did not record.
        verdict: FAIL, or TIMEOUT or CRASH where that is what happened.
        pictures: rule id -> block tables with what is wrong in them.
    """

    def __init__(
        self,
        text: str,
        *,
        rules: Iterable[str] = (),
        verdict: Verdict = Verdict.FAIL,
        pictures: Mapping[str, tuple[Picture, ...]] | None = None,
    ) -> None:
        super().__init__(text)
        self.pictures = pictures or {}
        self.text = text
        self.rules = tuple(rules)
        self.verdict = verdict


# Both are pytest skips, so that pytest, hypothesis and unittest pass them through without calling them failures.
class Inconclusive(_Skipped):
    """Nothing that the rule is about was witnessed; ``reason`` says what was missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"inconclusive: {reason}")
        self.reason = reason


class NotApplicable(_Skipped):
    """The rule is none of this connector's: a capability that it does not claim, or another vLLM release."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not applicable: {reason}")
        self.reason = reason


def record(
    where: pytest.Item | pytest.FixtureRequest,
    rule: str | RuleResult,
    verdict: Verdict = Verdict.PASS,
    *,
    witnesses: Mapping[str, int] | None = None,
    message: str = "",
    pictures: tuple[Picture, ...] = (),
) -> None:
    """Note what the running test found out about one rule.

    Args:
        where: the ``request`` fixture, or the test's item.
        rule: a rule id, or a whole result; its empty ``target`` and ``nodeid`` are filled in.
        verdict: not used when ``rule`` is a whole result.
        witnesses: how often each thing was seen that the verdict rests on; a pass needs at least one.
        message: what was found, or what was missing.
        pictures: block tables with what is wrong in them.
    """
    # A session-scoped request has no single test: its .node is the session, and the verdict would have no home.
    item = where if isinstance(where, pytest.Item) else where.node
    if not isinstance(item, pytest.Item):
        raise TypeError("record() belongs into a test or a function-scoped fixture: this request is of a wider scope.")
    if isinstance(rule, RuleResult):
        data = rule.to_dict()
    else:
        found = RuleResult(rule, "", verdict, witnesses=witnesses or {}, message=message, pictures=pictures)
        data = found.to_dict()
    data["target"] = data["target"] or target_of(item)
    data["nodeid"] = data["nodeid"] or item.nodeid
    item.user_properties.append((PROPERTY, json.dumps({"type": "result", **data}, sort_keys=True)))


def target_of(item: pytest.Item) -> str:
    """Id of the target that a test runs against; empty for a test that uses none."""
    callspec = getattr(item, "callspec", None)
    target = callspec.params.get("kvconform_target") if callspec is not None else None
    return str(getattr(target, "id", ""))


def rules_of(item: pytest.Item) -> tuple[str, ...]:
    """Ids of the rules that a test names, in the order of its markers, closest first."""
    return tuple(dict.fromkeys(str(rule) for mark in item.iter_markers("kvconform_rules") for rule in mark.args))


def results_in(user_properties: Iterable[tuple[str, Any]]) -> list[RuleResult]:
    """The results among a test's or a report's ``user_properties``."""
    return [RuleResult.from_dict(entry) for entry in entries_in(user_properties, "result")]


def entries_in(user_properties: Iterable[tuple[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The kit's entries of one type among ``user_properties``, without the type."""
    entries = [json.loads(value) for key, value in user_properties if key == PROPERTY]
    return [{k: v for k, v in entry.items() if k != "type"} for entry in entries if entry.get("type") == kind]
