"""Children of MultiConnector, on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import alloc, broken, compared, found, history, match, raised, witness

from kvconform.checks import Finding
from kvconform.checks.composition import rule_beside_a_stranger, rule_of
from kvconform.engine.events import ChildCall, EngineStarted, Event, HookCall


def child(call: HookCall) -> ChildCall:
    return ChildCall(call.engine, call.step, call)


def done(step: int, **ids: list[str]) -> HookCall:
    result = {"finished_sending": [], "finished_recving": [], "failed_recving": [], **ids}
    return HookCall(1, step, "worker", "get_transfer_results", {"finished_req_ids": []}, result)


def pair(step: int, *received: str, sent: tuple[str, ...] = ()) -> HookCall:
    """The answer that vLLM asked for before 0.30.0."""
    return HookCall(1, step, "worker", "get_finished", {}, ({"set": list(sent)}, {"set": list(received)}))


def failed(step: int, *blocks: int) -> HookCall:
    return HookCall(1, step, "worker", "get_block_ids_with_load_errors", {}, {"set": list(blocks)})


def built(step: int) -> HookCall:
    return HookCall(1, step, "scheduler", "build_connector_meta", {"scheduled": {"r1": 1}}, "<m>")


def finished(step: int, *, held: bool) -> HookCall:
    args = {"request": "r1", "status": "FINISHED_STOPPED", "block_ids": [1]}
    return HookCall(1, step, "scheduler", "request_finished", args, (held, None))


def refused(hook: str, step: int = 1, **args: Any) -> HookCall:
    return HookCall(1, step, "scheduler", hook, args, None, "KeyError: 'r1'", "vendor.py:7 in hook")


NOT_CHOSEN = (child(match((16, False))), child(alloc(0)))
LOADING = (child(match((16, True))), child(alloc(16)))


@pytest.mark.parametrize(
    ("events", "rule"),
    [
        ((*NOT_CHOSEN, child(done(1, finished_recving=["r1"]))), "MUL-02"),
        ((*NOT_CHOSEN, child(done(2, finished_recving=["r1"]))), "MUL-02"),
        ((*LOADING, child(done(2, finished_recving=["r1"])), child(done(3, finished_recving=["r1"]))), "MUL-02"),
        ((child(finished(1, held=False)), child(done(2, finished_sending=["r1"]))), "MUL-02"),
        ((*NOT_CHOSEN, child(failed(1, 2))), "MUL-06"),
        (
            (*LOADING, child(done(2, finished_recving=["r1"])), child(built(3)), child(failed(3, 2))),
            "MUL-06",
        ),
        ((*NOT_CHOSEN, child(done(1, failed_recving=["r1"]))), "MUL-06"),
        ((*NOT_CHOSEN, child(done(2, failed_recving=["r1"]))), "MUL-06"),
        ((child(match((16, False))), child(alloc(16)), child(built(2)), child(failed(2, 2))), "MUL-06"),
        ((child(finished(1, held=True)), *[child(done(step, finished_sending=["r1"])) for step in (2, 3)]), "MUL-02"),
        ((child(pair(1)), child(done(2, finished_recving=["r1"]))), "MUL-02"),
        ((child(pair(2, "r1")),), "MUL-02"),
        ((child(refused("update_connector_output")),), "MUL-07"),
        ((NOT_CHOSEN[0], child(refused("update_state_after_alloc", request="r1", num_external_tokens=0))), "MUL-10"),
    ],
)
def test_child_that_minds_its_siblings_business(events: tuple[Event, ...], rule: str) -> None:
    assert broken(*events) == [rule]


@pytest.mark.parametrize(
    "events",
    [
        (*LOADING, child(built(1)), child(built(2)), child(done(2, finished_recving=["r1"]))),
        (*LOADING, child(built(1)), child(failed(2, 2)), child(done(3, finished_recving=["r1"]))),
        (*LOADING, child(built(2)), child(done(2, finished_recving=["r1"])), child(failed(2, 2))),
        (*LOADING, child(built(2)), child(done(2, finished_recving=["r1"], failed_recving=["r1"]))),
        (child(match((16, False))), child(alloc(16)), child(built(1)), child(failed(1, 2))),
        (child(finished(1, held=True)), child(done(2, finished_sending=["r1"]))),
        (*LOADING, child(refused("update_state_after_alloc", request="r1", num_external_tokens=0))),
        (child(match((16, False))), child(refused("update_state_after_alloc", request="r1", num_external_tokens=16))),
        (child(match((16, False))), child(refused("request_finished", request="r1"))),
        (*NOT_CHOSEN, child(failed(1))),
        (child(match((1, True))), child(alloc(1)), child(done(2, finished_recving=["r1"]))),
    ],
)
def test_child_that_minds_its_own_business(events: tuple[Event, ...]) -> None:
    assert not [rule for rule in broken(*events) if rule.startswith("MUL-")]


def test_answers_of_get_finished_count_once_where_vllm_asks_around_it() -> None:
    assert "MUL-02" not in broken(*LOADING, child(pair(2, "r1")), child(done(2, finished_recving=["r1"])))
    held = child(finished(1, held=True))
    both = (child(pair(2, sent=("r1",))), child(done(2, finished_sending=["r1"])))
    assert "MUL-02" not in broken(held, *both)
    assert witness("MUL-02", held, *both) == 1


def test_first_of_what_is_not_the_childs_is_a_symptom_of_its_request() -> None:
    (finding,) = found("MUL-02", child(done(2, finished_recving=["r1", "r2"])), child(done(3, finished_sending=["r3"])))
    assert (finding.requests, finding.symptom) == (("r1",), True)
    assert found("MUL-06", *NOT_CHOSEN, child(failed(1, 2)))[0].requests == (), "blocks are nobody's"


def test_what_the_child_took_part_in_is_counted() -> None:
    second = (child(match((1, True), request="r2")), child(alloc(1, request="r2")))
    assert witness("MUL-02", *LOADING, *second) == 2
    sent = (child(finished(3, held=True)), child(done(4, finished_sending=["r1"])))
    assert witness("MUL-02", *LOADING, *second, *sent, *sent) == 4
    assert witness("MUL-02", *NOT_CHOSEN, child(finished(1, held=False)), child(done(2, finished_sending=["r1"]))) == 0
    outputs = [HookCall(1, step, "scheduler", "update_connector_output") for step in (1, 2)]
    assert witness("MUL-07", *map(child, outputs), child(refused("update_connector_output"))) == 2


def test_offer_counts_as_passed_over_when_bytes_were_compared() -> None:
    assert witness("MUL-10", *NOT_CHOSEN) == 0
    assert witness("MUL-10", *NOT_CHOSEN, compared(16)) == 1
    assert witness("MUL-10", *NOT_CHOSEN, *NOT_CHOSEN, compared(16)) == 2
    assert witness("MUL-10", NOT_CHOSEN[0], child(match((0, False))), child(alloc(0)), compared(16)) == 0
    assert witness("MUL-10", *LOADING, child(alloc(0)), compared(16)) == 0


def test_blocks_that_only_the_whole_reports_are_a_siblings() -> None:
    assert witness("MUL-06", *NOT_CHOSEN, failed(1, 2, 3)) == 2
    assert witness("MUL-06", *LOADING, child(failed(1, 2, 3)), failed(1, 2, 3)) == 0
    assert witness("MUL-06", failed(1, 2, 3)) == 0, "no child was seen"
    events = HookCall(1, 1, "worker", "get_kv_connector_kv_cache_events", {}, {"set": [2]})
    assert witness("MUL-06", *NOT_CHOSEN, events) == 0


@pytest.mark.parametrize(
    ("rule", "at", "expected"),
    [
        ("ASYNC-04", Event(1, 1), "MUL-02"),
        ("FAIL-04", Event(1, 1), "MUL-06"),
        ("LIVE-01", raised("update_connector_output"), "MUL-07"),
        ("LIVE-01", raised("start_load_kv"), "MUL-10"),
        ("LOAD-01", Event(1, 1), "MUL-10"),
        ("MUL-06", Event(1, 1), "MUL-06"),
    ],
)
def test_symptom_below_multi_connector_gets_the_rule_of_its_kind(rule: str, at: Event, expected: str) -> None:
    assert rule_of(history(), Finding(rule, "right", "wrong", at, symptom=True)) == expected


def handshake(*classes: str, error: str | None = None) -> ChildCall:
    args = {"ranks": ["(0, 0)"], "classes": list(classes)}
    return child(HookCall(1, 0, "scheduler", "set_xfer_handshake_metadata_pp_aware", args, None, error, "vendor.py:7"))


def test_child_that_raises_over_another_classes_handshake_metadata() -> None:
    assert broken(handshake("StrangersHandshake", error="AttributeError: port")) == ["MUL-04"]
    # Its own kind, or none, is no matter of siblings.
    assert "MUL-04" not in broken(handshake("Address", error="OSError: port in use"))
    assert "MUL-04" not in broken(handshake(error="KeyError: 0"))


def test_deliveries_of_another_classes_metadata_count_if_they_are_taken() -> None:
    assert witness("MUL-04", handshake("StrangersHandshake"), handshake("Address"), handshake()) == 1
    assert witness("MUL-04", handshake("StrangersHandshake", error="AttributeError: port")) == 0


def test_requests_count_as_changed_beside_a_stranger_and_when_bytes_were_compared() -> None:
    beside = EngineStarted(1, 0, (16,), "recompute", sibling="stranger")
    ended = child(finished(1, held=False))
    assert witness("MUL-12", beside, ended, ended, compared(16)) == 1
    assert witness("MUL-12", beside, ended) == 0
    assert witness("MUL-12", beside, *LOADING, compared(16)) == 0, "nobody changes a request that goes on"
    assert witness("MUL-12", EngineStarted(1, 0, (16,), "recompute", sibling="twin"), ended, compared(16)) == 0


@pytest.mark.parametrize(("rule", "expected"), [("LOAD-01", "MUL-12"), ("ORDER-05", "MUL-12"), ("MUL-04", "MUL-04")])
def test_symptom_beside_a_stranger_only_is_about_what_strangers_change(rule: str, expected: str) -> None:
    assert rule_beside_a_stranger(history(), Finding(rule, "right", "wrong", Event(1, 1), symptom=True)) == expected
