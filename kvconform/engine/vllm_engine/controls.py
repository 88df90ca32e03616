"""What a scenario does to an engine beside adding requests and taking steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from kvconform.device import Held
from kvconform.engine import compat
from kvconform.engine.events import CacheReset, ProgramAction
from kvconform.engine.history import History
from kvconform.engine.instrument import Recorder
from kvconform.engine.vllm_engine.execution import Execution


class Controls(ABC):
    """Of an engine: how it is disturbed, reset and paused, each written into the history as an action."""

    history: History
    number: int
    steps: int
    scheduler: Any
    connector: Any
    execution: Execution
    recorder: Recorder

    @abstractmethod
    def _guard(self, during: str, call: Any) -> Any:
        """Run vLLM's code; whatever it raises ends this engine."""

    @abstractmethod
    def _handshake_metadata(self) -> list[Any]:
        """What the workers have for a handshake, as it reaches the scheduler role."""

    def fail_forward(self, layers: int) -> None:
        """Let the next forward raise."""
        self.execution.fail_after = layers

    def hold(self, what: Held | None) -> None:
        """Make the device slow from the next step on, or no longer."""
        self.history.add(ProgramAction(self.number, self.steps, f"hold back {what or 'nothing'}", {}))
        self._guard("holding back work on the device", lambda: self.execution.hold(what))

    def dummy_run(self) -> None:
        """GPUModelRunner._dummy_run with the connector disabled (vllm/v1/worker/gpu/model_runner.py, 0.32.0)."""
        self.history.add(ProgramAction(self.number, self.steps, "dummy run", {}))
        self._guard("dummy run", self.execution.dummy_run)
        self.execution.check_writes("in a dummy run")

    def repeat_handshake(self) -> None:
        """EngineCore.wake_up does this from 0.33.0 on, once the KV cache is back."""
        self.history.add(ProgramAction(self.number, self.steps, "handshake again", {}))
        crossed = self._guard("collecting handshake metadata", self._handshake_metadata)
        self._guard("delivering handshake metadata", lambda: compat.deliver_handshake(self.connector, crossed))

    def reset_prefix_cache(self, *, running: bool = False, connector: bool = False) -> bool:
        """vLLM's own reset."""
        action = "preempt all" if running else "reset connector" if connector else "forget local"
        self.history.add(ProgramAction(self.number, self.steps, action, {}))

        def reset() -> bool:
            try:
                return bool(
                    self.scheduler.reset_prefix_cache(reset_running_requests=running, reset_connector=connector)
                )
            except RuntimeError:
                # With reset_running_requests, vLLM raises while a load or a held request keeps blocks. The caller of
                # the utility gets that error, the engine core lives on (Scheduler.reset_prefix_cache, 0.32.0).
                if running and self.recorder.raised.error is None:
                    return False
                raise

        idle = not self.scheduler.requests
        succeeded = bool(self._guard("reset_prefix_cache", reset))
        inherits = compat.inherits(self.connector, "reset_cache")
        self.history.add(CacheReset(self.number, self.steps, succeeded, idle, running, connector, inherits))
        return succeeded

    def pause(self, what: Literal["new", "all"] | None) -> None:
        """Scheduler.set_pause_state, as the engine core's pause and resume do."""
        from vllm.v1.core.sched.interface import PauseState

        states = {"new": PauseState.PAUSED_NEW, "all": PauseState.PAUSED_ALL, None: PauseState.UNPAUSED}
        self.history.add(ProgramAction(self.number, self.steps, f"pause {what}" if what else "resume", {}))
        self._guard("set_pause_state", lambda: self.scheduler.set_pause_state(states[what]))
