"""One import of torch and vLLM for all processes of pytest-xdist: its controller starts the nurseries for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kvconform.config import RunConfig

if TYPE_CHECKING:
    from kvconform.isolation.nursery import Nursery

_KEY = "kvconform_nurseries"


def shared_with(config: pytest.Config) -> tuple[str, ...]:
    """What a process of xdist's was told; nothing in any other, and where it runs on another machine of no use."""
    return tuple(getattr(config, "workerinput", {}).get(_KEY, ()))


class SharedNursery:
    """The controller's part: started with the first process of xdist's, closed after the last one has ended.

    Args:
        run_config: of the run.
    """

    def __init__(self, run_config: RunConfig) -> None:
        self._run_config = run_config
        self._nursery: Nursery | None = None
        self._told: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if self._nursery is None:
            from kvconform.isolation.nursery import Nursery

            self._nursery = Nursery(self._run_config.resolved_device, engine=self._run_config.resolved_engine)
            self._told = list(self._nursery.share())
        node.workerinput[_KEY] = self._told

    def pytest_unconfigure(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
