"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bench(tmp_path: Path, vllm_cpu: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store and a history for engines that are shut down after the test; nobody may be left in vLLM's global slot."""
    from bench import Bench
    from vllm.distributed.kv_transfer import kv_transfer_state

    monkeypatch.setattr(kv_transfer_state, "_KV_CONNECTOR_AGENT", None)
    made = Bench(tmp_path / "store")
    yield made
    made.close()
    assert kv_transfer_state._KV_CONNECTOR_AGENT is None
