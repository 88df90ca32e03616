"""A full store, on hand-made histories: what is offered in the end, as it comes out of the connector's process."""

from __future__ import annotations

import json

import pytest
from histories import history

from kvconform.checks import Examination
from kvconform.checks.calls import offered_by_request
from kvconform.checks.full_store import keeps_newest, keeps_oldest, lost, promises
from kvconform.engine.events import HookCall
from kvconform.engine.history import History
from kvconform.isolation.codec import dump_examination, load_examination


def offers(**tokens: int) -> Examination:
    calls = [
        HookCall(
            1, 1, "scheduler", "get_num_new_matched_tokens",
            {"request": request, "num_computed_tokens": 0, "num_tokens": 49}, (count, False),
        )
        for request, most in tokens.items() for count in (0, most)
    ]  # fmt: skip
    clean = Examination(History(), offered=offered_by_request(history(*calls)))
    return load_examination(json.loads(json.dumps(dump_examination(clean))))


FINDS = offers(newest2=0, newest1=48, oldest=0)
LOSES = offers(newest2=0, newest1=0, oldest=48)


def test_what_is_kept_is_what_is_offered() -> None:
    assert (keeps_newest(FINDS), keeps_oldest(FINDS)) == (True, False)
    assert (keeps_newest(LOSES), keeps_oldest(LOSES)) == (False, True)
    assert keeps_oldest(offers(oldest1=0, oldest2=48)), "any of them is enough"


@pytest.mark.parametrize("rule", ["SAVE-15", "MATCH-09", "LOAD-10"])
def test_newest_prompts_that_are_lost_by_what_was_promised_are_a_finding(rule: str) -> None:
    (finding,) = lost(rule, LOSES, FINDS, "after 3 promises")
    assert (finding.rule, finding.requests) == (rule, ("newest2", "newest1"))
    assert "after 3 promises" in finding.observed


def test_nothing_is_lost_that_is_not_found_without_promises_either() -> None:
    assert list(lost("LOAD-10", LOSES, LOSES, "")) == []
    assert list(lost("LOAD-10", FINDS, FINDS, "")) == []


def test_promises_are_counted_by_request() -> None:
    assert promises(offers(asks1=16, asks2=0, asks3=32, other=16), "asks") == 2
