"""Two reports side by side: what got better, what got worse, what is new or gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kvconform.report.document import NOT_RUN, UNCHECKED, Document, RuleEntry, TargetEntry

Kind = Literal["worse", "better", "changed", "new", "gone"]
KINDS: tuple[Kind, ...] = ("worse", "better", "changed", "new", "gone")

#: How good a verdict is; between equal ones a difference is a change, neither better nor worse. That nothing was shown
#: any more is worse than a pass; that a rule turns out to be broken is worse than nothing.
_RANK = {
    "pass": 0,
    "inconclusive": 1,
    "not applicable": 1,
    "warn": 2,
    "kit error": 3,
    # Excused or not, the rule is not known to be kept.
    "known failure": 3,
    "flaky": 3,
    "timeout": 3,
    "crash": 3,
    "fail": 3,
}
CANNOT_BE_TESTED = "cannot be tested"
TESTED = "tested"


@dataclass(frozen=True)
class Change:
    """One difference. ``before`` and ``after`` are verdicts; None where the report does not speak of the rule."""

    kind: Kind
    target: str
    #: Rule id; empty for a change of the connector as a whole.
    rule: str
    level: str | None
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs."""

    changes: tuple[Change, ...]
    #: How many verdicts are the same.
    same: int
    #: Sentences on what makes the reports hard to compare: other versions, other options, partial runs.
    notes: tuple[str, ...] = field(default_factory=tuple)

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """The changes of one kind."""
        return tuple(change for change in self.changes if change.kind == kind)

    @property
    def got_worse(self) -> bool:
        """Whether CI has to stop."""
        return any(change.kind == "worse" for change in self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        changes: dict[str, Any] = {kind: [_without_kind(change) for change in self.of(kind)] for kind in KINDS}
        return {**changes, "same": self.same, "notes": list(self.notes)}


def _without_kind(change: Change) -> dict[str, Any]:
    return {key: value for key, value in asdict(change).items() if key != "kind"}


def compare(before: Document, after: Document) -> Comparison:
    """What changed from one run to another, connector by connector and rule by rule."""
    changes: list[Change] = []
    same = 0
    old, new = ({target.id: target for target in document.targets} for document in (before, after))
    for target in dict.fromkeys([*old, *new]):
        usable = [target in known and not _is_unusable(d, target) for known, d in ((old, before), (new, after))]
        if target in old and target in new and usable[0] != usable[1]:
            words = (TESTED, CANNOT_BE_TESTED)
            kind: Kind = "worse" if usable[0] else "better"
            changes.append(Change(kind, target, "", None, words[usable[1]], words[usable[0]]))
        a, b = (_entries(known.get(target)) for known in (old, new))
        for rule in dict.fromkeys([*a, *b]):
            change = _change(target, rule, a.get(rule), b.get(rule))
            if change is None:
                same += rule in a and _is_judged(a[rule])
            else:
                changes.append(change)
    typed_before, typed_after = (
        {one.target for one in document.unusable} - {target.id for target in document.targets}
        for document in (before, after)
    )
    changes += [
        Change("worse" if target in old else "new", target, "", None, None, CANNOT_BE_TESTED)
        for target in sorted(typed_after - typed_before)
    ]
    changes += [
        Change("better" if target in new else "gone", target, "", None, CANNOT_BE_TESTED, None)
        for target in sorted(typed_before - typed_after)
    ]
    changes.sort(key=lambda change: KINDS.index(change.kind))
    return Comparison(tuple(changes), same, tuple(_notes(before, after)))


def _is_unusable(document: Document, target: str) -> bool:
    return any(one.target == target for one in document.unusable)


def _entries(target: TargetEntry | None) -> dict[str, RuleEntry]:
    return {entry.id: entry for entry in target.entries} if target is not None else {}


def _is_judged(entry: RuleEntry | None) -> bool:
    return entry is not None and entry.verdict not in (NOT_RUN, UNCHECKED)


def _change(target: str, rule: str, before: RuleEntry | None, after: RuleEntry | None) -> Change | None:
    level = next((entry.level for entry in (after, before) if entry is not None), None)
    words = tuple(entry.verdict if entry is not None else None for entry in (before, after))
    if words[0] == words[1] or not (_is_judged(before) or _is_judged(after)):
        return None
    if not _is_judged(before):
        kind: Kind = "new"
    elif not _is_judged(after):
        kind = "gone"
    else:
        difference = _RANK[words[1] or ""] - _RANK[words[0] or ""]
        kind = "worse" if difference > 0 else "better" if difference < 0 else "changed"
    return Change(kind, target, rule, level, *words)


def _notes(before: Document, after: Document) -> Iterator[str]:
    for name, a, b in (
        ("kvconform", before.kit.version, after.kit.version),
        ("vLLM", before.environment.vllm, after.environment.vllm),
        ("torch", before.environment.torch, after.environment.torch),
        ("Python", before.environment.python, after.environment.python),
    ):
        if a != b:
            yield f"{name} differs: {a or 'not installed'} before, {b or 'not installed'} after."
    if (before.run.baseline is None) != (after.run.baseline is None):
        yield f"Only the run {'before' if before.run.baseline is not None else 'after'} had a baseline."
    if before.kit.rules_digest != after.kit.rules_digest:
        yield "The rules differ, so a verdict may have changed without the connector."
    old = {target.id: target for target in before.targets}
    for target in after.targets:
        if target.id in old and target.options != old[target.id].options:
            names = [
                name
                for name in target.options.__dataclass_fields__
                if getattr(target.options, name) != getattr(old[target.id].options, name)
            ]
            yield f"{target.id}: other options ({', '.join(names)})."
    for when, document in (("before", before), ("after", after)):
        if document.run.partial:
            reasons = "; ".join(reason.sentence for reason in document.run.partial_reasons)
            yield f"The run {when} is partial: {reasons}."
