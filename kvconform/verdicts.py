"""What is known about a rule after a run. Plain data; knows nothing of pytest, vLLM or torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from kvconform.picture import Picture


class Verdict(Enum):
    """The verdict on one rule for one connector."""

    PASS = "pass"
    FAIL = "fail"
    #: A rule that a connector SHOULD keep is broken.
    WARN = "warn"
    #: The connector does not claim the capability, or the rule is not one of this vLLM release.
    NOT_APPLICABLE = "not applicable"
    #: Nothing was witnessed (no external hit, no preemption, ...), so nothing was shown.
    INCONCLUSIVE = "inconclusive"
    TIMEOUT = "timeout"
    CRASH = "crash"
    #: The kit itself went wrong; the connector is neither accused nor cleared.
    KIT_ERROR = "kit error"

    @property
    def is_bad(self) -> bool:
        """Whether a run with this verdict must not end with exit code 0."""
        return self in (Verdict.FAIL, Verdict.CRASH, Verdict.TIMEOUT, Verdict.KIT_ERROR)


#: Of several results for one rule the first of these that occurs is the verdict.
PRECEDENCE: tuple[Verdict, ...] = (
    Verdict.FAIL,
    Verdict.CRASH,
    Verdict.TIMEOUT,
    Verdict.KIT_ERROR,
    Verdict.WARN,
    Verdict.PASS,
    Verdict.INCONCLUSIVE,
    Verdict.NOT_APPLICABLE,
)

#: Begins the reason of every test of a connector that does not start at all.
NOT_SET_UP = "the connector could not be set up"
NO_WITNESS = "nothing that the rule is about was witnessed"


@dataclass(frozen=True)
class RuleResult:
    """What one test found out about one rule of one connector."""

    #: Rule id, e.g. "MATCH-05".
    rule: str
    #: Target id, see :class:`kvconform.target.Target`.
    target: str
    verdict: Verdict
    #: pytest's id of the test.
    nodeid: str = ""
    #: How often each thing was seen that the verdict rests on, e.g. ``{"external hits": 3}``.
    witnesses: Mapping[str, int] = field(default_factory=dict)
    #: What was found, or what was missing.
    message: str = ""
    #: Seconds.
    duration: float = 0.0
    #: Block tables with what is wrong in them.
    pictures: tuple[Picture, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "rule": self.rule,
            "target": self.target,
            "verdict": self.verdict.value,
            "nodeid": self.nodeid,
            "witnesses": dict(self.witnesses),
            "message": self.message,
            "duration": self.duration,
            "pictures": [picture.to_data() for picture in self.pictures],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RuleResult:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, ValueError: not what :meth:`to_dict` returned.
        """
        pictures = tuple(map(Picture.from_data, data.get("pictures", ())))
        return cls(**{**data, "verdict": Verdict(data["verdict"]), "pictures": pictures})


@dataclass(frozen=True)
class RuleVerdict:
    """The verdict on one rule for one connector, and the results it comes from."""

    rule: str
    target: str
    verdict: Verdict
    #: Sums over all results.
    witnesses: Mapping[str, int]
    #: In the order in which they came.
    results: tuple[RuleResult, ...]

    @property
    def deciding(self) -> tuple[RuleResult, ...]:
        """The results that have the rule's verdict."""
        return tuple(result for result in self.results if result.verdict is self.verdict)

    @property
    def messages(self) -> tuple[str, ...]:
        """What the deciding results say, each text once."""
        return tuple(dict.fromkeys(result.message for result in self.deciding if result.message))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of the deciding results, each once."""
        return tuple(dict.fromkeys(picture for result in self.deciding for picture in result.pictures))

    @property
    def duration(self) -> float:
        """Seconds of all results together."""
        return sum(result.duration for result in self.results)


def judge(result: RuleResult, level: str = "MUST") -> RuleResult:
    """The result with what its own facts allow it to say.

    A pass without a witness shows nothing, and breaking a rule that is not a MUST is a warning.
    """
    if result.verdict is Verdict.PASS and not any(count > 0 for count in result.witnesses.values()):
        return replace(result, verdict=Verdict.INCONCLUSIVE, message=result.message or NO_WITNESS)
    if result.verdict is Verdict.FAIL and level != "MUST":
        return replace(result, verdict=Verdict.WARN)
    return result


def aggregate(
    results: Iterable[RuleResult], levels: Mapping[str, str] | None = None
) -> dict[tuple[str, str], RuleVerdict]:
    """One verdict per (target id, rule id), by :data:`PRECEDENCE`.

    Args:
        results: of any number of tests, in any order; the order decides nothing but the order of texts.
        levels: rule id -> "MUST", "SHOULD" or "MAY"; a rule that is missing counts as a MUST.
    """
    grouped: dict[tuple[str, str], list[RuleResult]] = {}
    for result in results:
        judged = judge(result, (levels or {}).get(result.rule, "MUST"))
        grouped.setdefault((result.target, result.rule), []).append(judged)
    return {(target, rule): _combine(target, rule, group) for (target, rule), group in grouped.items()}


def _combine(target: str, rule: str, group: list[RuleResult]) -> RuleVerdict:
    witnesses: Counter[str] = Counter()
    for result in group:
        witnesses.update(dict(result.witnesses))
    verdict = min((result.verdict for result in group), key=PRECEDENCE.index)
    return RuleVerdict(rule, target, verdict, dict(witnesses), tuple(group))
