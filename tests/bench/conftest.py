"""A case measured in this process, with as few rounds as there may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvconform.bench.figures import Measured
from kvconform.bench.plan import Case
from kvconform.config import RunConfig
from kvconform.engine.options import ConnectorSpec

Measure = Callable[..., Measured]


@pytest.fixture
def measure(vllm_cpu: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """``measure("Class", "module", layout, blocks, store, **RunConfig's fields)``; nobody may be left in vLLM's slot.

    ``store`` is a folder for all cases, instead of one for each.
    """
    from vllm.distributed.kv_transfer import kv_transfer_state

    from kvconform.bench import measure as measuring

    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", None)
    monkeypatch.setattr(measuring, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "DECODING", 1)

    def run(
        name: str, module: str, layout: str = "LBNHC", blocks: int = 2, store: Path | None = None, **settings: Any
    ) -> Measured:
        config = RunConfig(engine="vllm", device="cpu", **settings)

        def connect(folder: Path) -> ConnectorSpec:
            path = str(store or folder)
            return ConnectorSpec(name, module, extra_config={"path": path} if "reference" in module else {})

        found, facts = measuring.measure(connect, Case(layout, blocks), config)
        assert facts["threads"] >= 1
        assert facts["clock"] > 0
        return found

    yield run
    assert kv_transfer_state._KV_CONNECTOR_AGENT is None
