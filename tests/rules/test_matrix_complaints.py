"""What the kill matrix says of connectors that are not as their entries say: at the end, and why."""

from __future__ import annotations

import kill_matrix
import pytest
from kill_matrix import complaints, try_again
from matrix_entries import Entry, Outcome

from kvconform.verdicts import RuleResult, Verdict, aggregate

MUTANT = Entry("mutant", "transfer:Wrong", frozenset({"LOAD-01", "SAVE-01"}), suites=("test_transfer.py",))
LEVELS = {"LOAD-01": "MUST", "SAVE-01": "MUST", "ASYNC-01": "MUST"}


def outcome(*results: RuleResult, entry: Entry = MUTANT, trouble: str = "") -> Outcome:
    verdicts = {rule: verdict for (_, rule), verdict in aggregate(results, LEVELS).items()}
    return Outcome(entry, verdicts, trouble)


def result(rule: str, verdict: Verdict, message: str = "") -> RuleResult:
    return RuleResult(rule=rule, target=MUTANT.connector, verdict=verdict, message=message)


def test_nothing_is_said_of_those_that_are_right() -> None:
    right = outcome(result("LOAD-01", Verdict.FAIL, "bytes"), result("SAVE-01", Verdict.FAIL, "bytes"))
    assert list(complaints([right])) == []


def test_what_was_missed_and_what_was_accused_too_is_said_with_its_texts() -> None:
    wrong = outcome(
        result("LOAD-01", Verdict.FAIL, "bytes of another request"),
        result("SAVE-01", Verdict.INCONCLUSIVE, "nothing was saved"),
        result("ASYNC-01", Verdict.FAIL, "reported twice\nat step 3"),
    )
    said = list(complaints([wrong]))
    assert said[0] == (
        "NOT RIGHT: mutant transfer:Wrong on test_transfer.py: not caught by SAVE-01; also accused of ASYNC-01"
    )
    assert said[1:] == [
        "  ASYNC-01: fail", "    reported twice", "    at step 3", "  SAVE-01: inconclusive", "    nothing was saved",
    ]  # fmt: skip


def test_a_rule_that_no_test_named_is_said_to_be_none() -> None:
    said = list(complaints([outcome(result("LOAD-01", Verdict.FAIL, "bytes"))]))
    assert said[1:] == ["  SAVE-01: no test of it was run"]


def test_long_texts_are_shortened_and_say_by_how_much() -> None:
    lines = kill_matrix.LINES_OF_A_MESSAGE + 3
    long = outcome(
        result("LOAD-01", Verdict.FAIL), result("SAVE-01", Verdict.FAIL),
        result("ASYNC-01", Verdict.FAIL, "\n".join(f"line {number}" for number in range(lines))),
    )  # fmt: skip
    said = list(complaints([long]))
    assert said[-2:] == [f"    line {lines - 4}", "    (3 more lines)"]


def test_no_verdict_at_all_is_said_with_what_pytest_printed() -> None:
    said = list(complaints([outcome(trouble="no verdict at all; pytest said:\nERROR")]))
    assert len(said) == 1
    assert said[0].endswith("no verdict at all; pytest said:\nERROR")


# -- tried again -------------------------------------------------------------------------------------------------------

RIGHT = outcome(result("LOAD-01", Verdict.FAIL, "bytes"), result("SAVE-01", Verdict.FAIL, "bytes"))
LUCKY = outcome(result("LOAD-01", Verdict.FAIL, "bytes"), result("SAVE-01", Verdict.PASS))


def test_a_mutant_that_is_right_when_tried_again_is_right_and_what_was_said_at_first_is_told() -> None:
    asked: list[Entry] = []

    def attempt(entry: Entry) -> Outcome:
        asked.append(entry)
        return RIGHT

    (done,) = try_again([LUCKY], attempt)
    assert asked == [MUTANT]
    assert not done.complaint
    said = list(complaints([done]))
    assert said[0].endswith("not caught by SAVE-01")
    assert said[-1] == "  (tried again: right this time)"


def test_a_mutant_that_is_wrong_twice_stays_wrong() -> None:
    (done,) = try_again([LUCKY], lambda entry: LUCKY)
    assert done.complaint
    assert [line for line in complaints([done]) if "NOT RIGHT" in line or "again" in line] == [
        "NOT RIGHT: mutant transfer:Wrong on test_transfer.py: not caught by SAVE-01",
        "  (tried again: not right either)",
        "NOT RIGHT: mutant transfer:Wrong on test_transfer.py: not caught by SAVE-01",
    ]


def test_nobody_innocent_and_nobody_right_is_tried_again() -> None:
    legal = Entry("odd", "legal:Odd", suites=("test_transfer.py",))
    accused = outcome(result("LOAD-01", Verdict.FAIL, "bytes"), entry=legal)
    assert accused.complaint
    assert try_again([accused, RIGHT], lambda entry: pytest.fail(f"{entry} was tried again")) == [accused, RIGHT]


def test_many_that_are_not_right_are_no_accident_and_not_tried_again() -> None:
    many = [LUCKY] * (kill_matrix.MOST_TRIED_AGAIN + 1)
    assert try_again(many, lambda entry: RIGHT) == many
