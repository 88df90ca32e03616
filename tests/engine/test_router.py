"""What a router adds to the parameters of a hand-off."""

from __future__ import annotations

from kvconform.engine.router import Router
from kvconform.scenario.hand_offs import REMOTE_DECODE
from kvconform.scenario.program import RequestSpec

ROUTER_SAYS = {"id": "{transfer}", "at": "{producer}:{producer:PORT}", "nested": {"list": ["{transfer}", 1]}}


def router() -> Router:
    return Router({"id": "{transfer}"}, ROUTER_SAYS, "engine-1", {"PORT": "99"})


def prefill(name: str) -> RequestSpec:
    return RequestSpec(name, ((1, 20),), kv_transfer_params=dict(REMOTE_DECODE))


def test_a_prefill_gets_an_id_that_nobody_had_and_the_consumer_gets_the_same() -> None:
    made = router()
    first, second = (made.to_producer(prefill(name)).kv_transfer_params for name in ("a", "b"))
    assert first is not None
    assert second is not None
    assert first == {**REMOTE_DECODE, "id": first["id"]}
    assert first["id"] != second["id"] != router().to_producer(prefill("b")).kv_transfer_params["id"]  # type: ignore[index]
    told = made.to_consumer({"a": None, "b": {"blocks": [1], "id": "the producer's own"}})
    assert told["a"] == {"id": first["id"], "at": "engine-1:99", "nested": {"list": [first["id"], 1]}}
    assert told["b"]["blocks"] == [1]
    assert told["b"]["id"] == second["id"]


def test_only_requests_that_a_proxy_sends_to_a_producer_are_routed() -> None:
    made = router()
    for params in (None, {}, {"do_remote_decode": True}, {**REMOTE_DECODE, "do_remote_decode": False}):
        request = RequestSpec("a", ((1, 20),), kv_transfer_params=params)
        assert made.to_producer(request) is request
    assert not made.routed("a")
    assert made.to_consumer({"a": {"blocks": [1]}, "c": None}) == {"a": {"blocks": [1]}, "c": None}


def test_what_is_no_set_of_parameters_is_passed_on_as_it_is() -> None:
    made = router()
    made.to_producer(prefill("a"))
    assert made.to_consumer({"a": "nonsense"}) == {"a": "nonsense"}
