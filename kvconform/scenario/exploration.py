"""Trying a family's programs until one fails, and shrinking that one."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from kvconform.api.runtime import EMBEDDED_WORDS
from kvconform.checks import CHECKS_BY_RULE, Examination
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program

# Executions that shrinking may spend once a program has failed: enough for a readable scenario, a few seconds at most.
SHRINK_LIMIT = 60
# Seconds after which it takes what it has; a scenario that hangs costs seconds each time.
SHRINK_SECONDS = 15.0


@dataclass(frozen=True)
class Budget:
    """How many programs hypothesis draws beyond a family's fixed examples."""

    examples: int
    seed: int = 0


@dataclass
class Outcome:
    """What exploring a family has shown.

    ``failed`` is the program that broke a rule the caller asked about; ``elsewhere`` holds, per other rule, the first
    program that broke it.
    """

    programs: int = 0
    refused: list[str] = field(default_factory=list)
    witnesses: dict[str, Counter[str]] = field(default_factory=dict)
    failed: tuple[Program, Examination] | None = None
    contrast: str = ""
    elsewhere: dict[str, tuple[Program, Examination]] = field(default_factory=dict)
    #: The known defect of vLLM that a program met first, in a sentence, and the rules that are excused by one.
    engine_bug: str = ""
    excused: set[str] = field(default_factory=set)

    def note(self, examination: Examination) -> None:
        """Count a run's witnesses."""
        self.programs += 1
        for rule, seen in examination.witnesses.items():
            self.witnesses.setdefault(rule, Counter()).update(dict(seen))

    def witness(self, rule: str) -> Mapping[str, int]:
        """What was seen for ``rule`` over all programs."""
        return self.witnesses.get(rule, Counter())


class Refused(Exception):
    """The connector refused to start with this set-up; legal, with its own words."""


def is_of_the_engine(refusal: str) -> bool:
    """Whether it was the engine that follows vLLM, which has not got everything, that refused a set-up."""
    return EMBEDDED_WORDS in refusal


#: How a refusal begins that is neither the connector's nor the engine's.
RULED_OUT = "the settings of this run rule the set-up out:"


def refusal_words(refusal: str) -> str:
    """Why a set-up could not be tried, in a sentence that says who refused it."""
    if refusal.startswith(RULED_OUT):
        return refusal
    if is_of_the_engine(refusal):
        return f"this engine lacks what the set-up needs: {refusal}"
    return f"the connector refuses this set-up: {refusal}"


# Plays a program and examines it; raises Refused.
Play = Callable[[Program], Examination]


class _Broken(AssertionError):
    """Carries hypothesis' shrinking; one subclass per set of rules, so that it cannot slip to another defect."""


@cache
def _broken(rules: tuple[str, ...]) -> type[_Broken]:
    return type(f"Broken_{'_'.join(rules)}", (_Broken,), {})


@dataclass
class Explorer:
    """Tries one family.

    Args:
        family: what is tried.
        rules: what the caller asks about; findings of others are noted and passed over.
        play: how; it answers the same for the same program, until ``look_again`` was asked about it.
        look_again: plays a program with patience that broke a rule while an engine hurried; None if none ever does.
    """

    family: Family
    rules: frozenset[str]
    play: Play
    look_again: Play | None = None
    outcome: Outcome = field(default_factory=Outcome)

    def explore(self, budget: Budget) -> Outcome:
        """Run the fixed examples, then draw; stop at the first failure and shrink it.

        Nothing is accused by an engine that hurried: such programs are looked at again, and then it all begins anew.
        """
        self._try(budget)
        while self._is_known_better():
            self.outcome = Outcome()
            self._try(budget)
        return self.outcome

    def _is_known_better(self) -> bool:
        """Look again at all programs that broke a rule while an engine hurried; whether that was of use for one."""
        better = False
        for program, examination in [*self.outcome.elsewhere.values(), *filter(None, [self.outcome.failed])]:
            if self.look_again is not None and examination.hurried:
                try:
                    better |= not self.look_again(program).hurried
                except Refused:
                    better = True
        return better

    def _try(self, budget: Budget) -> None:
        for program in self.family.examples:
            if self._run(program) is not None:
                return
        if budget.examples > 0:
            self._draw(budget)

    def _draw(self, budget: Budget) -> None:
        outcome = self.outcome
        known: dict[str, tuple[Examination, str] | None] = {}
        after_failure = 0
        failed_at = 0.0

        @hypothesis.seed(budget.seed)
        @settings(
            max_examples=budget.examples,
            database=None,
            deadline=None,
            derandomize=False,
            report_multiple_bugs=False,
            print_blob=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(program=self.family.strategy)
        def body(program: Program) -> None:
            nonlocal after_failure, failed_at
            key = repr(program)
            if key not in known:
                if outcome.failed is not None:
                    after_failure += 1
                    late = time.monotonic() - failed_at > SHRINK_SECONDS * self.family.more
                    if after_failure > SHRINK_LIMIT * self.family.more or late:
                        return
                known[key] = self._run(program)
            broken = known[key]
            if broken is not None:
                failed_at = failed_at or time.monotonic()
                outcome.failed, outcome.contrast = (program, broken[0]), broken[1]
                rules = tuple(sorted({finding.rule for finding in broken[0].findings}))
                raise _broken(rules)(", ".join(rules))

        with contextlib.suppress(_Broken):
            body()

    def _run(self, program: Program) -> tuple[Examination, str] | None:
        """Play one program; its examination, findings bound to their rules, if it broke a rule that was asked about."""
        try:
            examination = self.play(program)
        except Refused as error:
            self.outcome.refused.append(str(error))
            return None
        if examination.engine_bug:
            self.outcome.engine_bug = self.outcome.engine_bug or examination.engine_bug
            self.outcome.excused.update(examination.excused, (self.family.rule,) * examination.excused_symptom)
        contrast = ""
        if not examination.clean:
            # What a control shows by hurrying would acquit the situation.
            examination, contrast = bind_to_situation(self.family, program, examination, self.look_again or self.play)
        own = tuple(finding for finding in examination.findings if finding.rule in self.rules)
        for finding in examination.findings:
            if finding.rule not in self.rules:
                self.outcome.elsewhere.setdefault(finding.rule, (program, replace(examination, findings=(finding,))))
        if not own:
            self.outcome.note(examination)
            return None
        examination = replace(examination, findings=own)
        self.outcome.failed, self.outcome.contrast = (program, examination), contrast
        return examination, contrast


def bind_to_situation(
    family: Family, program: Program, examination: Examination, play: Play
) -> tuple[Examination, str]:
    """Give symptoms (wrong bytes, exceptions, hangs) to the family's rule if the control program does not show them."""
    symptoms = [
        finding
        for finding in examination.findings
        if (finding.symptom or finding.rule in family.alike) and finding.rule not in family.keeps
    ]
    if not symptoms or family.control is None or family.rule == "LOAD-01":
        return examination, ""
    try:
        control = play(family.control(program))
    except Refused:
        return examination, ""
    if family.alike & {finding.rule for finding in control.findings}:
        chapter = family.rule.partition("-")[0]
        kept = tuple(f for f in examination.findings if f.rule.partition("-")[0] != chapter)
        return replace(examination, findings=kept), ""
    if any(finding.symptom for finding in control.findings):
        if family.general is not None:
            return bind_to_situation(family.general, program, examination, play)
        return examination, f"The same scenario without {family.situation} fails as well, so that is not the cause."
    if not control.witnesses["LOAD-01"]["external tokens compared"]:
        # Nothing was loaded that could have been wrong.
        return (
            (examination, "")
            if family.general is None
            else bind_to_situation(family.general, program, examination, play)
        )
    sort = family.sort or (lambda _, __: family.rule)
    findings = tuple(
        replace(finding, rule=sort(examination.history, finding)) if finding in symptoms else finding
        for finding in examination.findings
    )
    loaded = control.witnesses["LOAD-01"]["external tokens compared"]
    contrast = (
        f"The same scenario without {family.situation} is right ({loaded} external tokens compared, no difference)."
    )
    if family.explain is not None:
        contrast += " " + family.explain(examination.history)
    return replace(examination, findings=findings), contrast


def witness_rule(rule: str) -> str:
    """The rule whose witness shows that ``rule``'s situation arose; situations are shown by compared loads."""
    return rule if rule in CHECKS_BY_RULE else "LOAD-01"


def seen_of(family: Family, outcome: Outcome, rule: str) -> Mapping[str, int]:
    """What shows that ``rule``'s situation arose: its own check's witness, or else the family's, or compared loads."""
    if family.shown is not None and rule not in CHECKS_BY_RULE:
        return outcome.witness(family.shown.name)
    return outcome.witness(witness_rule(rule))


def missing(rule: str, family: Family | None = None) -> str:
    """What was lacking when nothing was seen for ``rule``."""
    if family is not None and family.shown is not None and rule not in CHECKS_BY_RULE:
        return family.shown.missing
    return CHECKS_BY_RULE[witness_rule(rule)].missing
