"""What counts as tried for the identity rules, and which promises are endless."""

from __future__ import annotations

import pytest
from histories import alloc, broken, compared, found, match, witness

from kvconform.checks.identity import found_again
from kvconform.engine.events import EngineRaised, HookCall, NeverIdle, ProgramAction
from kvconform.isolation.reopening import Reopened

TOKENS = tuple(range(100, 149))


def added(request: str, *, tokens: tuple[int, ...] = TOKENS, engine: int = 1, **more: object) -> ProgramAction:
    detail = {"request": request, "tokens": list(tokens), "identity": "plain", "set_up": "model", **more}
    return ProgramAction(engine, 0, "add", detail)


def asked(request: str, engine: int = 1) -> HookCall:
    return match((0, False), request=request, engine=engine)


# -- look-alikes --


@pytest.mark.parametrize(
    ("other", "pairs"),
    [
        ({"identity": "salted"}, 1),
        ({}, 0),
        ({"tokens": tuple(range(16)) + TOKENS[16:]}, 1),
        ({"tokens": tuple(range(49))}, 0),
        ({"identity": "salted", "set_up": "other model"}, 0),
        ({"identity": "salted", "tokens": TOKENS[:16]}, 1),
        ({"identity": "salted", "tokens": TOKENS[:15]}, 0),
        ({"identity": "salted", "tokens": (0, *TOKENS[1:])}, 1),
        ({"identity": "salted", "tokens": TOKENS[1:]}, 0),
        ({"identity": "salted", "tokens": tuple(range(32)) + TOKENS[32:48]}, 1),
        ({"identity": "salted", "tokens": tuple(range(32)) + TOKENS[32:47]}, 0),
    ],
    ids=[
        "another salt", "the same", "another first block", "other tokens", "another engine", "one block",
        "half a block", "all but the first", "not at the same place", "the last block", "half of the last block",
    ],
)  # fmt: skip
def test_pairs_that_look_alike(other: dict[str, object], pairs: int) -> None:
    events = (added("a"), asked("a"), added("b", **other), asked("b"), compared(48, request="a"))  # type: ignore[arg-type]
    assert witness("MATCH-17", *events) == pairs


def test_block_that_neither_has_whole_is_not_looked_for() -> None:
    ends_alike = added("b", tokens=(*range(32), *TOKENS[32:47]))
    events = (added("a", tokens=TOKENS[:47]), asked("a"), ends_alike, asked("b"), compared(32, request="a"))
    assert witness("MATCH-17", *events) == 0


def test_look_alikes_show_nothing_where_nothing_is_loaded() -> None:
    events = (added("a"), asked("a"), added("b", identity="salted"), asked("b"))
    assert witness("MATCH-17", *events) == 0


def test_another_set_up_counts_when_it_was_asked_for_the_same_tokens() -> None:
    events = (added("a"), asked("a"), added("b", engine=2, set_up="other"), compared(48, request="a"))
    assert witness("MATCH-18", *events) == 0
    assert witness("MATCH-18", *events, asked("b", engine=2)) == 1
    other_tokens = added("c", engine=2, set_up="other", tokens=TOKENS[1:])
    assert witness("MATCH-18", *events, other_tokens, asked("c", engine=2)) == 0
    assert witness("MATCH-18", *events, added("c"), asked("c")) == 0, "it is the same set-up"


def test_embeddings_and_engines_without_local_cache_are_counted() -> None:
    assert witness("MATCH-25", added("a", embeds=True), asked("a")) == 1
    assert witness("MATCH-20", added("a", local_cache=False), compared(48, request="a")) == 48
    assert witness("MATCH-25", added("a"), asked("a")) == 0
    assert witness("MATCH-20", added("a", local_cache=True), compared(48, request="a")) == 0
    assert witness("MATCH-20", added("a"), compared(48, request="a")) == 0, "engines have one unless they are told"


def test_loads_without_local_cache_are_those_of_added_requests_and_count_once() -> None:
    alone = added("a", local_cache=False)
    assert witness("MATCH-20", alone, compared(48, request="a"), compared(0, request="a", step=2)) == 48
    assert witness("MATCH-20", ProgramAction(1, 0, "forget local"), alone, compared(48, request="a")) == 48


# -- other processes --


def test_a_store_found_by_another_process_is_a_pass() -> None:
    findings, witnesses, _ = found_again(Reopened(96))
    assert not findings
    assert found_again(Reopened(96, 96))[0] == (), "both have found it"
    assert sum(witnesses["SAVE-18"].values()) == 96


def test_a_store_found_only_with_the_same_hash_seed_is_a_finding() -> None:
    findings, _, _ = found_again(Reopened(0, 96))
    assert [finding.rule for finding in findings] == ["SAVE-18"]
    assert "loaded 96 tokens" in findings[0].observed


@pytest.mark.parametrize(
    ("reopened", "reason"),
    [(Reopened(0, 0), "nothing of what one process had stored"), (Reopened(obstacle="it ended"), "it ended")],
    ids=["never found", "ended"],
)
def test_a_store_that_no_other_process_finds_shows_nothing(reopened: Reopened, reason: str) -> None:
    findings, witnesses, lacking = found_again(reopened)
    assert not findings
    assert not sum(witnesses["SAVE-18"].values())
    assert lacking.startswith(reason)


def test_an_engine_of_another_set_up_may_refuse_the_store() -> None:
    refusal = EngineRaised(2, 0, "start-up", "ValueError: belongs to another model", "vendor.py:7 in __init__")
    assert "LIVE-01" in broken(refusal)
    assert "LIVE-01" not in broken(ProgramAction(2, 0, "another set-up", {}), refusal)


# -- endless promises --


def test_a_load_that_began_a_moment_ago_is_not_overdue() -> None:
    begun = (added("r1"), match((32, True), step=95), alloc(32, step=95))
    assert not found("ASYNC-01", *begun, NeverIdle(1, 99, 90, ("r1",)))
    begun = (added("r1"), match((32, True)), alloc(32))
    assert found("ASYNC-01", *begun, NeverIdle(1, 99, 90, ("r1",)))


def test_a_request_that_failed_while_it_loaded_still_has_to_be_received() -> None:
    failed = HookCall(
        1,
        2,
        "scheduler",
        "request_finished",
        {"request": "r1", "status": "FINISHED_ERROR", "block_ids": [1]},
        (False, None),
    )
    events = (added("r1"), match((32, True)), alloc(32), failed, NeverIdle(1, 99, 90, ("r1",)))
    assert found("FAIL-09", *events)
    assert not found("ASYNC-01", *events)
