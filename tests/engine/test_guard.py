"""Whose fault it is that the engine stops: vLLM's with what a connector gave it, or the kit's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import Bench, request

from kvconform.checks import examine
from kvconform.checks.model import KitFailure
from kvconform.engine import compat
from kvconform.engine.events import EngineRaised, HookCall, KitFailed
from kvconform.engine.history import History
from kvconform.engine.instrument import Recorder
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.vllm_engine import guard as module
from kvconform.engine.vllm_engine.guard import Guard, VllmWouldRaise

pytestmark = pytest.mark.usefixtures("vllm_cpu")


def guard_of(history: History) -> Guard:
    return Guard(history, Recorder(history, lambda: (1, 1)), lambda: (1, 1))


def raising_in(file: Path | str) -> Any:
    """A function whose code is said to stand in ``file``."""
    namespace: dict[str, Any] = {}
    exec(compile("def call():\n    raise TypeError('no such argument')", str(file), "exec"), namespace)
    return namespace["call"]


def test_a_call_that_the_installed_release_does_not_know_is_no_finding(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(active: Any, *_: Any) -> None:
        active.pre_forward(no_such_argument=1)

    # As if it stood in compat.py, which is where such calls are made.
    unknown.__code__ = unknown.__code__.replace(co_filename=compat.__file__)
    monkeypatch.setattr(compat, "v2_pre_forward", unknown)
    engine = bench.engine()
    engine.add(request("a", 33))
    with pytest.raises(EngineStopped, match="no_such_argument"):
        engine.step()
    assert not bench.of(EngineRaised)
    (failed,) = bench.of(KitFailed)
    assert failed.during == "execute_model"
    assert "active.pre_forward(no_such_argument=1)" in failed.trace or "in unknown" in failed.trace
    # Not a word about the connector, neither good nor bad.
    with pytest.raises(KitFailure, match="no_such_argument"):
        examine(bench.history)


@pytest.mark.parametrize("folder", ["engine/vllm_engine", "kvcache", "device"])
def test_what_the_kit_itself_raises_is_no_finding(folder: str) -> None:
    history = History()
    guard = guard_of(history)
    with pytest.raises(EngineStopped, match="no such argument"):
        guard.run("execute_model", raising_in(module._KIT / folder / "some.py"))
    (failed,) = history.events
    assert isinstance(failed, KitFailed)
    assert failed.error == "TypeError: no such argument"
    with pytest.raises(EngineStopped, match="dead"):
        guard.run("execute_model", lambda: None)


@pytest.mark.parametrize(
    "file",
    [
        "/somewhere/site-packages/vllm/v1/core/sched/scheduler.py",
        "/somewhere/my_package/my_module.py",
        module._KIT / "engine" / "embedded" / "standin" / "vllm" / "v1" / "request.py",
        module._KIT.parent / "reference" / "file_store.py",
    ],
)
def test_what_vllm_or_a_connector_raises_is_a_finding(file: Path | str) -> None:
    history = History()
    with pytest.raises(EngineStopped, match="execute_model"):
        guard_of(history).run("execute_model", raising_in(file))
    assert [(event.during, event.error) for event in history.of(EngineRaised)] == [
        ("execute_model", "TypeError: no such argument")
    ]


def test_an_error_of_a_hook_is_the_hooks_wherever_it_was_raised() -> None:
    """A hook that cannot be called with the engine's arguments raises in the line that calls it, which is the kit's."""
    history = History()
    recorder = Recorder(history, lambda: (1, 1))

    class Connector:
        def shutdown(self, unexpected: int) -> None:
            """Nobody gives it an argument."""

    connector = Connector()
    recorder.attach(connector, "worker")
    guard = Guard(history, recorder, lambda: (1, 1))
    with pytest.raises(EngineStopped):
        guard.run("worker shutdown", connector.shutdown)  # type: ignore[call-arg]
    (raised,) = history.of(EngineRaised)
    assert raised.cause_hook == "shutdown"


def test_a_finding_from_before_the_kit_failed_stands(bench: Bench) -> None:
    """What the kit stumbled over is told, and not that it stumbled."""
    history = bench.history
    wrong = (-5, False)
    asked = {"request": "a", "num_computed_tokens": 0, "num_tokens": 33}
    history.add(HookCall(1, 1, "scheduler", "get_num_new_matched_tokens", asked, wrong))
    history.add(KitFailed(1, 1, "execute_model", "ValueError: shape mismatch", "kvconform/kvcache/memory.py:1 in put"))
    history.add(HookCall(1, 2, "scheduler", "get_num_new_matched_tokens", asked, (-7, False)))
    assert [finding.at for finding in examine(history).findings] == [history.events[0]]


def test_a_failure_of_vllm_in_a_line_of_the_kits_is_told_as_vllms() -> None:
    def refuse() -> None:
        raise VllmWouldRaise("no context manager")

    refuse.__code__ = refuse.__code__.replace(co_filename=str(module._KIT / "engine" / "some.py"))
    history = History()
    with pytest.raises(EngineStopped):
        guard_of(history).run("start-up", refuse)
    assert [event.error for event in history.of(EngineRaised)] == ["VllmWouldRaise: no context manager"]
