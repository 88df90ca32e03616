"""How long engines wait for transfers, and what lives in a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvconform.config import RunConfig
from kvconform.engine.events import NeverIdle
from kvconform.engine.options import STORE, ConnectorSpec, EngineOptions
from kvconform.engine.router import Router
from kvconform.engine.vllm_engine import engine as engine_module
from kvconform.scenario.program import Program
from kvconform.stage import Manner, Stage
from kvconform.target import Target

TARGET = Target("x:Y", "module", "x", "Y", "x:Y")


class Engines:
    """Stands for the engine's class: keeps the patience of each, and lets it get stuck or wait as told."""

    def __init__(self) -> None:
        self.patience: list[float] = []
        self.hurried: list[bool] = []
        self.routers: list[Router | None] = []
        self.specs: list[ConnectorSpec] = []
        self.stuck = False
        self.wait = 0.0

    def __call__(
        self,
        options: Any,
        spec: Any,
        history: Any,
        provenance: Any,
        number: int,
        device: str,
        p: float,
        *,
        hurried: bool,
        router: Router | None,
    ) -> Any:
        self.patience.append(p)
        self.routers.append(router)
        self.hurried.append(hurried)
        self.specs.append(spec)
        if self.stuck:
            history.add(NeverIdle(number, 1, 200, ("r1",), p))
        return _Idle(self.wait)


class _Idle:
    def __init__(self, wait: float) -> None:
        self.longest_wait = wait
        self.connectors = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(engine_module, "VllmEngine", made)
    return made


def test_once_a_transfer_is_stuck_engines_wait_three_times_as_long_as_any_good_one_took(engines: Engines) -> None:
    stage = Stage(TARGET, RunConfig(transfer_timeout=10.0))
    waits = [(0.0, False), (2.0, False), (0.0, True), (0.0, False), (9.0, False), (0.0, False)]
    for engines.wait, engines.stuck in waits:
        stage.play(Program("waits"))
    assert engines.patience == [10.0, 10.0, 10.0, 6.0, 6.0, 10.0]
    assert engines.hurried == [False, False, False, True, True, False]


def test_a_program_that_is_played_with_patience_is_waited_for_in_full(engines: Engines) -> None:
    stage = Stage(TARGET, RunConfig(transfer_timeout=10.0))
    engines.stuck = True
    for patient in (False, False, True, False):
        stage.play(Program("waits"), Manner(patient))
    assert engines.patience == [10.0, 1.0, 10.0, 1.0]
    assert engines.hurried == [False, True, False, True]


def test_engines_wait_a_second_at_least_and_as_long_as_the_scenario_allows_at_most(engines: Engines) -> None:
    stage = Stage(TARGET, RunConfig(transfer_timeout=10.0, timeout=8.0, peer_timeout=5.0))
    engines.stuck = True
    stage.play(Program("waits"))
    stage.play(Program("waits"))
    stage.play(Program("waits", pair=("kv_producer", "kv_consumer")))
    assert engines.patience == [4.0, 1.0, 6.0, 6.0]
    assert engines.hurried == [False, True, False, False], "a peer's silence is waited for in full"


def test_patience_that_is_given_is_kept(engines: Engines) -> None:
    stage = Stage(TARGET, RunConfig(), patience=0.5)
    engines.stuck = True
    stage.play(Program("waits"))
    stage.play(Program("waits"))
    assert engines.patience == [0.5, 0.5]


def test_a_scenario_has_a_fresh_directory_that_is_removed(engines: Engines) -> None:
    stage = Stage(TARGET, RunConfig(kv_connector_extra_config={"path": "{dir}/store", "port": "{port}"}))
    seen: list[ConnectorSpec] = []
    original = stage.connector_spec

    def spec(directory: Path) -> ConnectorSpec:
        assert directory.is_dir()
        seen.append(original(directory))
        return seen[-1]

    stage.connector_spec = spec  # type: ignore[method-assign]
    stage.play(Program("one"))
    stage.play(Program("other"))
    paths = [Path(each.extra_config["path"]).parent for each in seen]
    assert paths[0] != paths[1]
    assert not any(path.exists() for path in paths)


def test_a_store_beside_the_connector_belongs_to_one_engine_of_a_pair(engines: Engines) -> None:
    beside = EngineOptions(place="last", sibling="store")
    Stage(TARGET, RunConfig()).play(Program("beside", beside, pair=("kv_producer", "kv_consumer")))
    children = [spec.extra_config["connectors"] for spec in engines.specs]
    assert [[each["kv_connector"] for each in pair] for pair in children] == [[STORE[0], "Y"]] * 2
    assert [spec.child for spec in engines.specs] == [1, 1]
    paths = [store["kv_connector_extra_config"]["path"] for store, _ in children]
    assert [Path(path).name for path in paths] == ["kv_producer", "kv_consumer"]


def test_a_router_stands_before_each_engine_of_a_pair_if_the_configuration_has_one(engines: Engines) -> None:
    pair, alone = Program("pair", pair=("kv_producer", "kv_consumer")), Program("alone")
    Stage(TARGET, RunConfig()).play(pair)
    routed = Stage(TARGET, RunConfig(consumer_params={"at": "{producer}"}, engine_env={"PORT": "{port}"}))
    routed.play(alone)
    routed.play(pair)
    assert engines.routers[:3] == [None, None, None]
    producer, consumer = engines.routers[3:]
    assert producer is not None
    assert consumer is not None
    assert [producer.engine_id, consumer.engine_id] == [spec.engine_id for spec in engines.specs[3:]]
    assert producer.engine_id != consumer.engine_id
    assert producer.env == engines.specs[3].env != consumer.env
