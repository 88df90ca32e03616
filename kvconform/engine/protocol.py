"""What every engine offers to a scenario."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from kvconform.device import Held
from kvconform.engine.history import History
from kvconform.scenario.program import RequestSpec


class NotSimulated(NotImplementedError):
    """A connector asked for something that the kit does not simulate; no defect of the connector."""


class EngineStopped(Exception):
    """The engine raised and is dead, as a real engine core would be; the history says why."""


class Engine(Protocol):
    """One running engine with a connector in it. Everything observable goes into ``history``.

    Every method raises :class:`EngineStopped` once vLLM's code or a hook has raised.
    """

    history: History

    @property
    def delivered(self) -> dict[str, Any]:
        """What the connector had for the front-end when a request ended, by request."""

    @property
    def longest_wait(self) -> float:
        """The most seconds that a drain has waited for a transfer which ended then."""

    @property
    def connectors(self) -> tuple[Any, ...]:
        """The scheduler role's connector and those of the workers, as far as they were built."""

    def add(self, spec: RequestSpec) -> None:
        """Queue a request."""

    def abort(self, request_id: str) -> None:
        """Abort a live request; unknown ids are ignored, as the engine core does."""

    def abort_on_arrival(self, request_id: str) -> None:
        """Abort a request in the step whose results report the end of its load, before they are taken."""

    def step(self) -> bool:
        """Run one engine step if there is work; whether there was."""

    def begin_step(self) -> bool:
        """The first half of :meth:`step`, scheduling, if there is work; whether there was."""

    def finish_step(self, aborts: tuple[str, ...] = ()) -> None:
        """The other half of a step that :meth:`begin_step` began: execution, aborts, and taking its results."""

    def fail_forward(self, layers: int) -> None:
        """The next forward raises once so many layers are computed."""

    def drain(self, meanwhile: Callable[[], object] = lambda: None, *, held: bool = False) -> None:
        """Step until idle, or with ``held`` until every request has finished; ``meanwhile`` is done after each step.

        What is still unfinished at the limit is recorded as NeverIdle.
        """

    def outlast(self, limit: float, meanwhile: Callable[[], object]) -> bool:
        """Step until idle or until ``limit`` seconds, a peer's longest silence, are well over; whether it is idle."""

    def reset_prefix_cache(self, *, running: bool = False, connector: bool = False) -> bool:
        """vLLM's reset_prefix_cache; whether it succeeded."""

    def pause(self, what: Literal["new", "all"] | None) -> None:
        """Admit no new request, schedule nothing at all, or go on as usual."""

    def hold(self, what: Held | None) -> None:
        """Make the device slow from the next step on, or no longer; without a device the engine stops."""

    def dummy_run(self) -> None:
        """A forward without the connector: the worker takes it out of its process-wide slot and puts it back."""

    def repeat_handshake(self) -> None:
        """Collect the workers' handshake metadata and give it to the scheduler role again."""

    def audit(self) -> None:
        """Record what an idle engine still holds."""

    def shutdown(self) -> None:
        """Worker role first, then scheduler role, as EngineCore.shutdown does."""

    def shutdown_again(self) -> None:
        """Call shutdown of both connectors a second time, as error paths and finalisers may."""
