"""Exploring a family: stop at the first failure, shrink it, and give a symptom to the situation that provokes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st

from kvconform.api.runtime import EMBEDDED_WORDS
from kvconform.checks import Examination, Finding
from kvconform.checks.model import Situation
from kvconform.engine.events import Event, NeverIdle
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.scenario import exploration
from kvconform.scenario.exploration import Budget, Explorer, Outcome, Refused, missing, refusal_words, seen_of
from kvconform.scenario.family import Family
from kvconform.scenario.program import Add, Drain, Program, RequestSpec

AT = Event(1, 1)
LOADED = {"LOAD-01": {"external tokens compared": 32}}
NOTHING_LOADED = {"LOAD-01": {"external tokens compared": 0}}


def program(length: int, budget: int = 2048) -> Program:
    options = EngineOptions(max_num_batched_tokens=budget)
    return Program("lengths", options, (Add(RequestSpec("a", ((1, length),))), Drain()))


def length_of(of: Program) -> int:
    (add,) = [action for action in of.actions if isinstance(action, Add)]
    return add.request.prompt_length


def lengths(low: int = 1, high: int = 500) -> Any:
    return st.integers(low, high).map(program)


def symptom(rule: str = "LOAD-01", said: str = "wrong") -> Finding:
    return Finding(rule, "right", said, AT, symptom=True)


def result(*findings: Finding, witnesses: Any = None) -> Examination:
    return Examination(History(), findings, LOADED if witnesses is None else witnesses)


class Stage:
    """Plays programs by a function of their prompt length and counts what it played."""

    def __init__(self, examine: Callable[[Program], Examination]) -> None:
        self.examine = examine
        self.played: list[Program] = []

    def __call__(self, of: Program) -> Examination:
        self.played.append(of)
        return self.examine(of)


def explore(stage: Stage, family: Family, *rules: str, examples: int = 60, seed: int = 0) -> Outcome:
    return Explorer(family, frozenset(rules or (family.rule,)), stage).explore(Budget(examples, seed))


def family(*examples: Program, rule: str = "LOAD-01", **more: Any) -> Family:
    fields: dict[str, Any] = {"strategy": lengths(), "situation": "the situation", **more}
    return Family("lengths", rule, examples, **fields)


# -- stopping and shrinking ------------------------------------------------------------------------------------


def test_a_right_connector_is_tried_on_every_example_and_draws() -> None:
    stage = Stage(lambda of: result())
    outcome = explore(stage, family(program(3), program(900)), examples=20)
    assert outcome.failed is None
    assert stage.played[:2] == [program(3), program(900)]
    assert 10 < outcome.programs == len(stage.played) <= 22
    assert outcome.witness("LOAD-01") == Counter({"external tokens compared": 32 * outcome.programs})
    assert outcome.witness("ALLOC-01") == {}


def test_the_first_failing_example_ends_everything() -> None:
    stage = Stage(lambda of: result(symptom()) if length_of(of) == 20 else result())
    outcome = explore(stage, family(program(10), program(20), program(30)))
    assert [length_of(of) for of in stage.played] == [10, 20]
    assert outcome.failed is not None
    assert outcome.failed[0] == program(20)
    assert outcome.programs == 1, "witnesses of a failed program are no witnesses of a pass"


@pytest.mark.parametrize("threshold", [1, 17, 123, 400])
def test_a_drawn_failure_is_shrunk_to_the_smallest(threshold: int) -> None:
    stage = Stage(lambda of: result(symptom()) if length_of(of) >= threshold else result())
    outcome = explore(stage, family())
    assert outcome.failed is not None
    assert length_of(outcome.failed[0]) == threshold
    assert outcome.failed[1].findings == (symptom(),)


def test_no_program_is_played_twice() -> None:
    stage = Stage(lambda of: result(symptom()) if length_of(of) >= 123 else result())
    explore(stage, family())
    played = [repr(of) for of in stage.played]
    assert len(played) == len(set(played))


def test_shrinking_ends_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration, "SHRINK_LIMIT", 5)
    failures = 0

    def examine(of: Program) -> Examination:
        nonlocal failures
        failures += 1
        return result(symptom())

    strategy = st.tuples(*[st.integers(0, 10_000) for _ in range(5)]).map(lambda of: program(1 + sum(of)))
    stage = Stage(examine)
    outcome = explore(stage, family(strategy=strategy))
    assert outcome.failed is not None
    assert len(stage.played) <= 6


def test_a_connector_that_answers_differently_every_time_still_gets_one_verdict() -> None:
    """Hypothesis would call it flaky; a program is played once, and that is its result."""
    answers = iter([result(), result(symptom())] * 500)
    outcome = explore(Stage(lambda of: next(answers)), family())
    assert outcome.failed is not None
    assert outcome.failed[1].findings


def test_a_failure_does_not_slip_to_another_defect_while_it_shrinks() -> None:
    """Long prompts break one rule, short ones another: what was found first is what is shown."""

    def examine(of: Program) -> Examination:
        if length_of(of) >= 100:
            return result(symptom("LOAD-01"))
        return result(symptom("LIVE-01")) if length_of(of) <= 3 else result()

    outcome = explore(Stage(examine), family(strategy=lengths(1, 100_000)), "LOAD-01", "LIVE-01")
    assert outcome.failed is not None
    of, examination = outcome.failed
    assert (length_of(of), examination.findings[0].rule) in ((100, "LOAD-01"), (1, "LIVE-01"))


def test_the_same_seed_tries_the_same_programs() -> None:
    played = []
    for seed in (1, 1, 2):
        stage = Stage(lambda of: result())
        explore(stage, family(strategy=lengths(1, 100_000)), seed=seed, examples=10)
        played.append([length_of(of) for of in stage.played])
    assert played[0] == played[1]
    assert played[0] != played[2]


def test_without_a_budget_only_the_examples_run() -> None:
    stage = Stage(lambda of: result())
    assert explore(stage, family(program(3)), examples=0).programs == 1


def test_an_error_of_the_kit_is_not_swallowed() -> None:
    def broken(of: Program) -> Examination:
        raise KeyError("the kit's own")

    with pytest.raises(KeyError, match="the kit's own"):
        explore(Stage(broken), family())


# -- refusals --------------------------------------------------------------------------------------------------


def test_a_refused_set_up_is_noted_and_is_no_program() -> None:
    def examine(of: Program) -> Examination:
        if length_of(of) % 2:
            raise Refused(f"no odd prompts: {length_of(of)}")
        return result()

    outcome = explore(Stage(examine), family(program(3), program(4)), examples=0)
    assert outcome.programs == 1
    assert outcome.refused == ["no odd prompts: 3"]


# -- whose rule ------------------------------------------------------------------------------------------------


def chunks(**more: Any) -> Family:
    fields: dict[str, Any] = {
        "rule": "META-07",
        "situation": "chunked prefill",
        "control": lambda of: replace(of, options=EngineOptions()),
        "strategy": st.nothing(),
        **more,
    }
    return family(program(100, budget=32), **fields)


def chunked(of: Program) -> bool:
    return of.options.max_num_batched_tokens < length_of(of)


def test_a_symptom_that_the_control_does_not_show_is_the_situations() -> None:
    stage = Stage(lambda of: result(symptom(said="tokens 0-15 hold zeros")) if chunked(of) else result())
    outcome = explore(stage, chunks(explain=lambda history: "In steps of 32."))
    assert outcome.failed is not None
    _, examination = outcome.failed
    assert [(finding.rule, finding.observed) for finding in examination.findings] == [
        ("META-07", "tokens 0-15 hold zeros")
    ]
    right = "The same scenario without chunked prefill is right (32 external tokens compared, no difference)."
    assert outcome.contrast == f"{right} In steps of 32."
    assert [chunked(of) for of in stage.played] == [True, False]


def test_a_symptom_that_the_control_shows_too_is_not() -> None:
    outcome = explore(Stage(lambda of: result(symptom())), chunks(), "META-07", "LOAD-01")
    assert outcome.failed is not None
    assert [finding.rule for finding in outcome.failed[1].findings] == ["LOAD-01"]
    assert outcome.contrast == ("The same scenario without chunked prefill fails as well, so that is not the cause.")


def test_a_control_that_loaded_nothing_proves_nothing() -> None:
    stage = Stage(lambda of: result(symptom()) if chunked(of) else result(witnesses=NOTHING_LOADED))
    outcome = explore(stage, chunks(), "META-07", "LOAD-01")
    assert outcome.failed is not None
    assert [finding.rule for finding in outcome.failed[1].findings] == ["LOAD-01"]
    assert outcome.contrast == ""


def test_a_control_that_is_refused_proves_nothing() -> None:
    def examine(of: Program) -> Examination:
        if chunked(of):
            return result(symptom())
        raise Refused("only chunks")

    outcome = explore(Stage(examine), chunks(), "META-07", "LOAD-01")
    assert outcome.failed is not None
    assert [finding.rule for finding in outcome.failed[1].findings] == ["LOAD-01"]
    assert outcome.refused == []


def test_what_is_no_symptom_keeps_its_rule() -> None:
    answer = Finding("MATCH-05", "at most 48", "49", AT)
    stage = Stage(lambda of: result(answer, symptom()) if chunked(of) else result())
    outcome = explore(stage, chunks(), "META-07")
    assert outcome.failed is not None
    assert [finding.rule for finding in outcome.failed[1].findings] == ["META-07"]
    assert set(outcome.elsewhere) == {"MATCH-05"}
    of, examination = outcome.elsewhere["MATCH-05"]
    assert chunked(of)
    assert examination.findings == (answer,)


def test_a_family_may_leave_a_rule_its_symptoms() -> None:
    stage = Stage(lambda of: result(symptom("ALLOC-02"), symptom()) if chunked(of) else result())
    outcome = explore(stage, chunks(keeps=frozenset({"ALLOC-02"})), "META-07", "ALLOC-02")
    assert outcome.failed is not None
    assert {finding.rule for finding in outcome.failed[1].findings} == {"META-07", "ALLOC-02"}


def test_the_general_rules_family_has_no_control() -> None:
    stage = Stage(lambda of: result(symptom()))
    outcome = explore(stage, chunks(rule="LOAD-01"))
    assert outcome.failed is not None
    assert len(stage.played) == 1


def test_findings_of_other_rules_are_noted_and_passed_over() -> None:
    leak = Finding("LIVE-03", "nothing", "a block", AT)
    stage = Stage(lambda of: result(leak))
    outcome = explore(stage, family(program(10), program(20)), "LOAD-01", examples=0)
    assert outcome.failed is None
    assert outcome.programs == 2
    assert {rule: length_of(of) for rule, (of, _) in outcome.elsewhere.items()} == {"LIVE-03": 10}


def test_what_was_missing_is_said_in_the_checks_words() -> None:
    assert missing("LOAD-03") == "no load was committed to"
    assert missing("META-07") == missing("LOAD-01")
    assert missing("META-07", family()) == missing("LOAD-01")


def test_a_family_with_a_witness_of_its_own_is_not_shown_by_compared_loads() -> None:
    situation = Situation("chunks", lambda _: {}, "no chunk was seen")
    of = family(program(40), rule="META-07", shown=situation)
    loaded = explore(Stage(lambda _: result()), of, examples=0)
    assert seen_of(of, loaded, "META-07") == {}
    # A rule with a check of its own has that check's witness.
    assert seen_of(of, loaded, "LOAD-01") == {"external tokens compared": 32}
    shown = explore(Stage(lambda _: result(witnesses={**LOADED, "chunks": {"chunks": 2}})), of, examples=0)
    assert seen_of(of, shown, "META-07") == {"chunks": 2}
    assert missing("META-07", of) == "no chunk was seen"
    assert missing("LOAD-03", of) == missing("LOAD-03")


def test_a_refusal_says_who_refuses() -> None:
    assert (
        refusal_words("ValueError: no such layout") == "the connector refuses this set-up: ValueError: no such layout"
    )
    lacking = f"recurrent layers are not simulated by the {EMBEDDED_WORDS}"
    assert refusal_words(lacking) == f"this engine lacks what the set-up needs: {lacking}"


# -- engines that hurried --------------------------------------------------------------------------------------


def hurried(*findings: Finding) -> Examination:
    history = History()
    history.add(NeverIdle(1, 1, 200, ("r1",), 1.0, hurried=True))
    return Examination(history, findings, LOADED)


class Slow:
    """Takes what hurries for stuck from a length on, and knows better of programs that were looked at again."""

    def __init__(self, slow_from: int, broken_from: int = 1000, rule: str = "LOAD-01") -> None:
        self.slow_from, self.broken_from, self.rule = slow_from, broken_from, rule
        self.known: dict[str, Examination] = {}
        self.looked_at: list[int] = []

    def glance(self, of: Program) -> Examination:
        late = hurried(symptom(self.rule, "late")) if length_of(of) >= self.slow_from else result()
        return self.known.setdefault(repr(of), late)

    def look_again(self, of: Program) -> Examination:
        if self.glance(of).hurried:
            self.looked_at.append(length_of(of))
            broken = length_of(of) >= self.broken_from
            self.known[repr(of)] = result(symptom(self.rule, "never")) if broken else result()
        return self.known[repr(of)]

    def explore(self, family: Family, examples: int = 0) -> Outcome:
        return Explorer(family, frozenset({"LOAD-01"}), self.glance, self.look_again).explore(Budget(examples))


@pytest.mark.parametrize("rule", ["LOAD-01", "ASYNC-07"], ids=["asked-about", "elsewhere"])
def test_what_is_only_slow_is_acquitted_once_it_is_looked_at_again(rule: str) -> None:
    slow = Slow(20, rule=rule)
    outcome = slow.explore(family(program(10), program(20), program(30)))
    assert (outcome.failed, outcome.elsewhere) == (None, {})
    assert slow.looked_at == [20, 30]
    assert outcome.programs == 3
    assert outcome.witness("LOAD-01") == Counter({"external tokens compared": 96})


def test_what_never_ends_is_accused_by_the_one_that_waited_in_full() -> None:
    outcome = Slow(10, broken_from=20).explore(family(program(10), program(20), program(30)))
    assert outcome.failed is not None
    assert outcome.failed[0] == program(20)
    assert outcome.failed[1].findings == (symptom("LOAD-01", "never"),)


def test_a_drawn_program_that_hurried_is_looked_at_again_after_it_was_shrunk() -> None:
    slow = Slow(50, broken_from=50)
    outcome = slow.explore(family(), examples=60)
    assert outcome.failed is not None
    assert length_of(outcome.failed[0]) == 50
    assert slow.looked_at == [50], "not each of those that shrinking tried"


def test_what_stays_in_doubt_is_accused_as_it_is_and_explored_once() -> None:
    stage = Stage(lambda of: hurried(symptom()))
    explorer = Explorer(family(program(3)), frozenset({"LOAD-01"}), stage, stage.examine)
    outcome = explorer.explore(Budget(0))
    assert stage.played == [program(3)]
    assert outcome.failed is not None
    assert outcome.failed[1].findings == (symptom(),)


def test_a_refusal_of_the_second_look_is_a_refusal() -> None:
    answers = {"glance": hurried(symptom())}

    def glance(of: Program) -> Examination:
        if not answers:
            raise Refused("no room")
        return answers["glance"]

    def look_again(of: Program) -> Examination:
        answers.clear()
        raise Refused("no room")

    outcome = Explorer(family(program(3)), frozenset({"LOAD-01"}), glance, look_again).explore(Budget(0))
    assert (outcome.failed, outcome.refused) == (None, ["no room"])


def test_a_control_that_hurried_does_not_acquit_the_situation() -> None:
    """The control is slow, and right once it is waited for: the situation is what breaks the bytes."""
    slow = Slow(5)
    slow.known[repr(program(20))] = result(symptom())
    cold = family(program(20), rule="PRE-01", control=lambda of: program(10))
    outcome = Explorer(cold, frozenset({"PRE-01"}), slow.glance, slow.look_again).explore(Budget(0))
    assert outcome.failed is not None
    assert [finding.rule for finding in outcome.failed[1].findings] == ["PRE-01"]
    assert slow.looked_at == [10]
