"""Connectors on a simulated device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvconform.checks import Examination, examine
from kvconform.engine.history import History
from kvconform.engine.options import PATIENCE, ConnectorSpec, EngineOptions
from kvconform.kvcache.provenance import Provenance
from kvconform.scenario.program import Program
from kvconform.scenario.run import play

Trial = Callable[[str, dict[str, Any], Program], Examination]


@pytest.fixture
def on_simulated_device(vllm_cpu: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trial:
    """Play a program with "module:Class", settings and a fresh simulated device, and examine what happened."""
    from simulated_device import SimulatedDevice
    from vllm.distributed.kv_transfer import kv_transfer_state

    from kvconform.engine.vllm_engine.engine import VllmEngine
    from kvconform.reference.pinned_offload import PinnedOffloadConnector

    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", None)

    def trial(connector: str, settings: dict[str, Any], program: Program) -> Examination:
        device = SimulatedDevice()
        monkeypatch.setattr(PinnedOffloadConnector, "_make_streams", staticmethod(lambda _: device))
        module, _, name = connector.partition(":")

        def make(options: EngineOptions, history: History, provenance: Provenance, number: int) -> VllmEngine:
            spec = ConnectorSpec(name, module, extra_config=dict(settings))
            return VllmEngine(options, spec, history, provenance, number, "cpu", PATIENCE, device)

        return examine(play(program, make, tmp_path))

    return trial
