"""What a check is: a function from a history to findings, and what has to have happened for silence to mean a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.engine.events import Event, NeverIdle, Outlasted
from kvconform.engine.history import History

#: No step of any engine: for what a class shows, or what was seen outside of scenarios.
BEFORE = Event(0, 0)


class KitFailure(Exception):
    """The kit itself failed while a scenario was played, and nothing before that breaks a rule."""


@dataclass(frozen=True)
class Finding:
    """A rule was broken. Texts are for a reader who has never seen the kit.

    ``requests`` are the ids whose trace explains the finding. ``symptom`` findings only show that bytes or behaviour
    are wrong; a suite may re-bind them to the rule whose situation provoked them (see kvconform.scenario.judge).
    """

    rule: str
    expected: str
    observed: str
    at: Event
    details: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    symptom: bool = False


@dataclass(frozen=True)
class Check:
    """One rule's check.

    ``witness`` counts what was seen that the rule is about; ``missing`` says what was lacking when it is empty.
    """

    rule: str
    find: Callable[[History], Iterator[Finding]]
    witness: Callable[[History], Mapping[str, int]]
    missing: str


@dataclass(frozen=True)
class Situation:
    """What shows that a situation arose, for rules that have no check of their own; ``name`` is that of its witness."""

    name: str
    witness: Callable[[History], Mapping[str, int]]
    missing: str


def no_finding(_: History) -> Iterator[Finding]:
    """For rules about a situation: a scenario family that provokes it binds the symptoms to the rule."""
    return iter(())


@dataclass(frozen=True)
class Examination:
    """A history and what all checks say of it."""

    history: History
    findings: tuple[Finding, ...] = ()
    witnesses: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    #: Capability -> how often it was seen at work.
    capabilities: Mapping[str, int] = field(default_factory=dict)
    #: Request id -> the most tokens that the connector offered for it; 0 for one that was asked about in vain.
    offered: Mapping[str, int] = field(default_factory=dict)
    #: The known defect of vLLM that the scenario met, in a sentence, and the rules that would else be broken: nothing
    #: that came after it is a finding, and nothing of the whole is a witness.
    engine_bug: str = ""
    excused: tuple[str, ...] = ()
    #: Whether a symptom is among what is excused; it would be bound to the rule of its situation.
    excused_symptom: bool = False

    @property
    def clean(self) -> bool:
        """Whether no rule was found broken."""
        return not self.findings

    @property
    def hurried(self) -> bool:
        """Whether a rule was found broken after an engine had not waited for its full time."""
        waits: tuple[NeverIdle | Outlasted, ...] = (*self.history.of(NeverIdle), *self.history.of(Outlasted))
        return not self.clean and any(wait.hurried for wait in waits)
