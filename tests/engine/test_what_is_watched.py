"""Which hooks the engine's objects are compared around, and what is found to be different in a SchedulerOutput."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from kvconform.engine.events import Role
from kvconform.engine.history import History
from kvconform.engine.instrument import Recorder
from kvconform.engine.vllm_engine.role_watch import _OutputBefore

pytestmark = pytest.mark.usefixtures("vllm_cpu")


class Watch:
    """Notes the hooks that it is told of."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.left: list[str] = []

    def enter(self, role: str, hook: str, step: int, args: tuple[Any, ...]) -> None:
        self.entered.append(hook)

    def leave(self, role: str, hook: str, args: tuple[Any, ...], result: Any) -> None:
        self.left.append(hook)

    def raised(self, role: str, hook: str, error: BaseException) -> None:
        self.left.append(f"{hook} raised")


def recorded(connector: Any, role: Role = "scheduler") -> tuple[Any, Watch, History]:
    history, watch = History(), Watch()
    recorder = Recorder(history, lambda: (1, 1))
    recorder.watch = watch  # type: ignore[assignment]
    recorder.attach(connector, role)
    return connector, watch, history


def inert(**more: Any) -> Any:
    """A connector that leaves all but the abstract hooks to vLLM's base class."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    names = KVConnectorBase_V1.__abstractmethods__
    kind = type("Inert", (KVConnectorBase_V1,), {name: lambda *_, **__: None for name in names} | more)
    return kind.__new__(kind)


def test_hooks_of_the_base_class_are_recorded_and_not_watched() -> None:
    connector, watch, history = recorded(inert())
    assert list(connector.take_events()) == []
    assert connector.has_pending_push_work() is False
    assert (watch.entered, watch.left) == ([], [])
    assert [call.hook for call in history.calls()] == ["take_events", "has_pending_push_work"]


def test_hooks_that_tell_of_lives_are_always_watched() -> None:
    connector, watch, history = recorded(inert())
    request = SimpleNamespace(request_id="r", status=SimpleNamespace(name="FINISHED_STOPPED"))
    connector.on_new_request(request)
    connector.request_finished(request, [1])
    assert watch.entered == watch.left == ["on_new_request", "request_finished"]
    assert [call.args["request"] for call in history.calls()] == ["r", "r"]


@pytest.mark.parametrize(
    ("hook", "watched"), [("get_kv_connector_stats", True), ("get_finished", False), ("wait_for_save", False)]
)
def test_only_reports_of_the_worker_role_are_looked_at(hook: str, watched: bool) -> None:
    connector, watch, history = recorded(inert(**{hook: lambda *_: None}), "worker")
    getattr(connector, hook)(*([set()] if hook == "get_finished" else []))
    assert (watch.entered, watch.left) == (([hook], [hook]) if watched else ([], []))
    assert [call.role for call in history.calls(hook)] == ["worker"]


def test_error_of_any_own_hook_is_told() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("planted")

    connector, watch, history = recorded(inert(wait_for_save=fail), "worker")
    with pytest.raises(ValueError, match="planted"):
        connector.wait_for_save()
    assert watch.left == ["wait_for_save raised"]
    assert [call.error for call in history.calls()] == ["ValueError: planted"]


def test_hooks_of_the_connector_are_watched() -> None:
    connector, watch, _ = recorded(inert(take_events=lambda self: ()))
    connector.take_events()
    assert (watch.entered, watch.left) == (["take_events"], ["take_events"])


def test_hook_that_the_instance_replaces_is_watched() -> None:
    connector = inert()
    connector.take_events = lambda: ()
    recorded_connector, watch, _ = recorded(connector)
    recorded_connector.take_events()
    assert watch.entered == ["take_events"]


def test_hook_that_the_base_class_calls_is_watched() -> None:
    """bind_kv_cache_manager of the base class calls bind_gpu_block_pool (0.32.0)."""
    pools: list[Any] = []
    connector, watch, history = recorded(inert(bind_gpu_block_pool=lambda self, pool: pools.append(pool)))
    connector.bind_kv_cache_manager(SimpleNamespace(block_pool="pool"))
    assert pools == ["pool"]
    assert watch.entered == ["bind_gpu_block_pool"]
    assert {call.hook for call in history.calls()} == {"bind_kv_cache_manager", "bind_gpu_block_pool"}


# -- what is different -------------------------------------------------------------------------------------------------


class Bystander:
    """Counts nothing and changes nothing, but is no plain data."""

    def __init__(self) -> None:
        self.ids = ["r1"]


def output(**more: Any) -> SimpleNamespace:
    plain: dict[str, Any] = {
        "scheduled_new_reqs": [Bystander()],
        "num_scheduled_tokens": {"r1": 16, "r2": 1},
        "finished_req_ids": {"r3"},
        "preempted_req_ids": None,
        "new_block_ids_to_zero": [1],
        "kv_connector_block_state": SimpleNamespace(req_ids={"r1"}, resolve_block_ids=lambda _: ([1],)),
    }
    return SimpleNamespace(**plain | more)


CHANGES: dict[str, tuple[Any, str]] = {
    "tokens": (lambda o: o.num_scheduled_tokens.update(r1=17), "output.num_scheduled_tokens['r1']: 16 became 17"),
    "set": (lambda o: o.finished_req_ids.add("r9"), "output.finished_req_ids: gained 'r9'"),
    "none": (lambda o: setattr(o, "preempted_req_ids", 3), "output.preempted_req_ids: None became 3"),
    "inside": (
        lambda o: o.scheduled_new_reqs[0].ids.append("r7"),
        "output.scheduled_new_reqs[0].ids: 1 entries became 2",
    ),
    "new": (lambda o: setattr(o, "more", 1), "output.more is new"),
    "gone": (lambda o: delattr(o, "finished_req_ids"), "output.finished_req_ids is gone"),
    "lent": (
        lambda o: o.kv_connector_block_state.req_ids.clear(),
        "output.kv_connector_block_state.req_ids: lost 'r1'",
    ),
}


@pytest.mark.parametrize("odd", [False, True], ids=["", "with something that no pickler takes"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_an_output_is_told(change: str, odd: bool) -> None:
    given = output(lock=threading.Lock()) if odd else output()
    before = _OutputBefore(given)
    assert before.differences(given) == []
    do, words = CHANGES[change]
    do(given)
    assert before.differences(given) == [words]


def test_what_a_connector_may_change_is_no_change() -> None:
    given = output()
    before = _OutputBefore(given)
    given.new_block_ids_to_zero = None
    given.kv_connector_metadata = object()
    given.has_sync_kv_loads = True
    assert before.differences(given) == []


def test_equal_objects_in_the_place_of_others_are_no_change() -> None:
    given = output()
    before = _OutputBefore(given)
    name = "".join(("r", "1"))
    given.num_scheduled_tokens = {name: 16, "r2": 1}
    given.scheduled_new_reqs = [Bystander()]
    assert before.differences(given) == []


def test_output_that_can_no_longer_be_pickled_is_compared_by_what_it_says() -> None:
    given = output()
    before = _OutputBefore(given)
    given.lock = threading.Lock()
    assert before.differences(given) == ["output.lock is new"]
