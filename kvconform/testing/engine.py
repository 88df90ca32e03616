"""Running engines for tests that drive them step by step."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvconform.engine.events import ProgramAction
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.kvcache.provenance import Provenance
from kvconform.testing.configuration import VllmConfigFactory

if TYPE_CHECKING:
    from kvconform.engine.vllm_engine.engine import VllmEngine


@dataclass(repr=False)
class EngineFactory:
    """Starts engines; what the fixture ``make_engine`` returns.

    All engines of a test share the store, ``history`` and what is known of the bytes in their caches.
    """

    make_vllm_config: VllmConfigFactory
    history: History = field(default_factory=History)
    _provenance: Provenance = field(default_factory=Provenance)
    _engines: list[VllmEngine] = field(default_factory=list)
    _agent_before: Any = None

    def __call__(
        self,
        options: EngineOptions | None = None,
        *,
        kv_role: str | None = None,
        kv_connector_extra_config: dict[str, Any] | None = None,
        engine_id: str | None = None,
        **given: Any,
    ) -> VllmEngine:
        """Start an engine with the connector under test.

        Args:
            options: the set-up, by default ``EngineOptions()``.
            kv_role: as for ``make_vllm_config``.
            kv_connector_extra_config: as for ``make_vllm_config``.
            engine_id: as for ``make_vllm_config``.
            given: fields of EngineOptions, instead of ``options``: ``make_engine(max_num_batched_tokens=32)``.

        Raises:
            EngineStopped: vLLM or the connector refused to start; the message says which and why.
            ValueError, TypeError: options that EngineOptions refuses, or options given in both ways.
        """
        from vllm.distributed.kv_transfer import kv_transfer_state

        from kvconform.engine.vllm_engine.engine import VllmEngine

        if options is not None and given:
            raise TypeError(f"options and {', '.join(given)} were given: set them in the EngineOptions")
        spec = self.make_vllm_config.connector_spec(kv_role, kv_connector_extra_config, engine_id)
        if not self._engines:
            self._agent_before = kv_transfer_state._KV_CONNECTOR_AGENT
        engine = VllmEngine(
            EngineOptions(**given) if options is None else options,
            spec,
            self.history,
            self._provenance,
            len(self._engines) + 1,
            self.make_vllm_config.device,
        )
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        """Shut down what the test did not, last engine first; all of them, even if one raises."""
        from vllm.distributed.kv_transfer import kv_transfer_state

        ended = {event.engine for event in self.history.of(ProgramAction) if event.action == "shutdown"}
        with ExitStack() as stack:
            if self._engines:
                # A worker puts back the connector that it found: a dead one, if engines were shut down in their order.
                stack.callback(setattr, kv_transfer_state, "_KV_CONNECTOR_AGENT", self._agent_before)
            for engine in self._engines:
                if engine.number not in ended:
                    stack.callback(engine.shutdown)
