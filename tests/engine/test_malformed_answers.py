"""An answer that no contract allows is the connector's defect or vLLM's business: the kit does not stumble over it."""

from __future__ import annotations

import contextlib
import json

import malformed_connectors
import pytest
from bench import Bench, request

from kvconform.checks import examine
from kvconform.engine.events import EngineRaised, HookCall, KitFailed
from kvconform.engine.options import ConnectorSpec, EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.engine.vllm_engine.engine import VllmEngine
from kvconform.isolation.codec import dump_examination, load_examination

pytestmark = pytest.mark.usefixtures("vllm_cpu")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", malformed_connectors.ANSWERS)
def test_the_kit_does_not_fail_over_a_malformed_answer(bench: Bench, name: str, workers: int) -> None:
    spec = ConnectorSpec(name, "malformed_connectors", extra_config={"path": str(bench.path)})
    hook, _ = malformed_connectors.ANSWERS[name]
    with contextlib.suppress(EngineStopped):
        engine = VllmEngine(EngineOptions(workers=workers), spec, bench.history, bench.provenance)
        bench.engines.append(engine)
        for each in ("store", "reload"):
            engine.add(request(each, 49, 2))
            for _ in range(12):
                engine.step()
            engine.reset_prefix_cache(connector=hook == "reset_cache")
    # A release without the hook never asks.
    if hasattr(malformed_connectors.FileStoreConnector, hook) and hook != "get_finished_count":
        assert [call for call in bench.of(HookCall) if call.hook == hook]
    examination = examine(bench.history)
    for raised in bench.of(EngineRaised):
        assert "kvconform/" not in raised.where or raised.during.startswith(("serialising", "start-up")), raised
    # What the kit failed over has to have a finding before it.
    assert not bench.of(KitFailed) or examination.findings
    text = json.dumps(dump_examination(examination))
    assert len(load_examination(json.loads(text)).findings) == len(examination.findings)
