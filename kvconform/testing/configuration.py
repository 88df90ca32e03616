"""What the engines and connectors of one test share, and their VllmConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvconform.config import ROLES, RunConfig
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.filling_in import engine_environment, free_port
from kvconform.placeholders import PLACEHOLDERS, expand, placeholders
from kvconform.target import Target

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class SharedStore:
    """The values of the placeholders for one test: ``{dir}`` and the ports."""

    #: ``{dir}``: an empty directory at the start of the test; pytest removes it some runs later.
    directory: Path
    _ports: dict[str, int] = field(default_factory=dict, repr=False)

    def port(self, name: str = "") -> int:
        """The value of ``{port}``, or with a name of ``{port:NAME}``: a free TCP port, the same during the test."""
        if name not in self._ports:
            self._ports[name] = free_port()
        return self._ports[name]

    def expand(self, value: Any) -> Any:
        """Copy of a configuration value with its placeholders replaced, see :func:`kvconform.placeholders.expand`.

        Raises:
            ValueError: unknown placeholder.
        """
        values: dict[str, str | int] = {}
        for name in sorted(placeholders(value)):
            kind, _, label = name.partition(":")
            if kind == "port":
                values[name] = self.port(label)
            elif name == "dir":
                values[name] = str(self.directory)
            else:
                raise ValueError(f"unknown placeholder {{{name}}} in {value!r}: use {PLACEHOLDERS}; a brace is doubled")
        return expand(value, values)


@dataclass(frozen=True, repr=False)
class VllmConfigFactory:
    """Makes VllmConfig objects; what the fixture ``make_vllm_config`` returns."""

    target: Target
    config: RunConfig
    store: SharedStore

    @property
    def device(self) -> str:
        """The device of the run, "cpu" or "cuda"."""
        return self.config.resolved_device

    def connector_spec(
        self,
        kv_role: str | None = None,
        kv_connector_extra_config: Mapping[str, Any] | None = None,
        engine_id: str | None = None,
    ) -> ConnectorSpec:
        """The connector under test in the terms of vLLM's KVTransferConfig; arguments as for a call."""
        role = self.config.kv_role if kv_role is None else kv_role
        if role not in ROLES:
            raise ValueError(f"kv_role is {role!r}: it has to be one of {', '.join(ROLES)}")
        given = (
            self.config.kv_connector_extra_config if kv_connector_extra_config is None else kv_connector_extra_config
        )
        return ConnectorSpec(
            self.target.class_name,
            self.target.module_path,
            role,
            self.store.expand(dict(given)),
            engine_id,
            env=engine_environment(self.config, self.store.directory),
        )

    def __call__(
        self,
        options: EngineOptions | None = None,
        *,
        connector: bool = True,
        kv_role: str | None = None,
        kv_connector_extra_config: Mapping[str, Any] | None = None,
        engine_id: str | None = None,
    ) -> VllmConfig:
        """A fresh VllmConfig.

        Args:
            options: the engine; by default ``EngineOptions()``. Its shape decides block size and model length only:
                plan a KV cache with ``make_test_kv_cache_config(..., vllm_config=...)``.
            connector: False leaves ``kv_transfer_config`` out.
            kv_role: "kv_both", "kv_producer" or "kv_consumer" instead of the run's role.
            kv_connector_extra_config: instead of the run's; ``{dir}``, ``{port}`` and ``{port:NAME}`` are replaced.
            engine_id: instead of a random one.

        Raises:
            ValueError: unknown role or placeholder.
            Exception: whatever vLLM raises for a connector class that it refuses (VllmConfig.__post_init__).
        """
        from kvconform.engine.vllm_engine.configuration import build_vllm_config

        spec = self.connector_spec(kv_role, kv_connector_extra_config, engine_id) if connector else None
        return build_vllm_config(EngineOptions() if options is None else options, spec, self.device)
