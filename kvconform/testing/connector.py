"""Connectors of either role, made as vLLM makes them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from kvconform.testing.cache import KVCacheConfigFactory, KVCachePlan

Role = Literal["worker", "scheduler"]


@dataclass
class _Made:
    role: Role
    cache: KVCachePlan
    connector: Any
    is_shut_down: bool = False


@dataclass(repr=False)
class ConnectorFactory:
    """Makes connectors; what the fixture ``make_connector`` returns."""

    make_cache: KVCacheConfigFactory
    _made: list[_Made] = field(default_factory=list)
    _default: KVCachePlan | None = None

    @property
    def default_cache(self) -> KVCachePlan:
        """The KV cache of calls that name none: one per test, so that both roles have the same."""
        if self._default is None:
            self._default = self.make_cache()
        return self._default

    def __call__(self, role: Role, cache: KVCachePlan | None = None) -> Any:
        """The connector under test, from KVConnectorFactory.create_connector.

        Args:
            role: "worker" or "scheduler".
            cache: a plan of ``make_test_kv_cache_config``; by default one plan for the whole test. The connector gets
                its ``vllm_config``, and its ``worker`` or ``scheduler`` as ``kv_cache_config``.

        Raises:
            ValueError: unknown role; a plan without a connector in its VllmConfig; the worker role after the
                scheduler role of the same plan, because an engine makes its workers first.
            Exception: whatever vLLM's factory or the connector's constructor raises.
        """
        from vllm.config import set_current_vllm_config
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

        from kvconform.engine.vllm_engine.layers import place_layers

        if role not in get_args(Role):
            raise ValueError(f"role is {role!r}: it has to be 'worker' or 'scheduler'")
        plan = self.default_cache if cache is None else cache
        if plan.vllm_config.kv_transfer_config is None:
            raise ValueError(
                "this KV cache was planned with a VllmConfig without a connector: "
                "plan it with make_vllm_config(), without connector=False"
            )
        if role == "worker" and any(made.role == "scheduler" and made.cache is plan for made in self._made):
            raise ValueError(
                "the scheduler role of this KV cache was made before its worker role, and an engine makes its workers "
                "first: call make_connector('worker', cache) before make_connector('scheduler', cache)"
            )
        kv_cache_config = plan.worker if role == "worker" else plan.scheduler
        if role == "worker":
            place_layers(plan.vllm_config, kv_cache_config)
        with set_current_vllm_config(plan.vllm_config):
            connector = KVConnectorFactory.create_connector(
                plan.vllm_config, KVConnectorRole[role.upper()], kv_cache_config
            )
        made = _Made(role, plan, connector)
        _note_shutdown(made)
        self._made.append(made)
        return connector

    def close(self) -> None:
        """Shut down what the test did not, workers first as in EngineCore.shutdown; all of them even if one raises."""
        with ExitStack() as stack:
            # Leaving a stack runs the callbacks in reverse.
            for made in sorted(self._made, key=lambda made: made.role == "worker"):
                if not made.is_shut_down:
                    stack.callback(made.connector.shutdown)


def _note_shutdown(made: _Made) -> None:
    """Shadow ``shutdown`` of the instance, so that a test may call it and it isn't called again afterwards."""
    original = made.connector.shutdown

    def shutdown() -> Any:
        made.is_shut_down = True
        return original()

    made.connector.shutdown = shutdown
