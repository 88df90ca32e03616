"""ThresholdConnector: what it forwards, member by member; what it declines; what its statistics survive."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, PropertyMock, create_autospec

import pytest
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from kvconform.checks import Examination
from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.reference._host_stats import HostOffloadStats
from kvconform.reference._wrapped_stats import ThresholdPromMetrics, ThresholdStats
from kvconform.reference.threshold_connector import (
    DECLINED_HITS,
    DECLINED_TOKENS,
    HybridThresholdConnector,
    ThresholdConnector,
    wrapped_config,
)
from kvconform.scenario import failures, hybrid, observability, transfer
from kvconform.scenario.program import Program
from kvconform.target import parse_target

#: What the base class answers from what every instance has of its own.
OWN = {"role", "has_connector_metadata"}
#: Hooks in which the wrapper has a say.
OPINION = {"get_num_new_matched_tokens", "get_kv_connector_stats"}
MEMBERS = {name: value for name, value in vars(KVConnectorBase_V1).items() if not name.startswith("_")}
FORWARDED = [name for name, value in MEMBERS.items() if inspect.isfunction(value) and name not in OWN | OPINION]
PROPERTIES = [name for name, value in MEMBERS.items() if isinstance(value, property) and name not in OWN]
HOST = KVTransferConfig(
    kv_connector="HostOffloadConnector", kv_connector_module_path="kvconform.reference.host_offload", kv_role="kv_both"
)


def wrapper(threshold: int = 32) -> tuple[ThresholdConnector, Mock]:
    """A wrapper around a recording stand-in."""
    connector = ThresholdConnector.__new__(ThresholdConnector)
    wrapped = create_autospec(KVConnectorBase_V1, instance=True)
    connector._wrapped, connector._threshold, connector._declined = wrapped, threshold, {}
    connector._wrapped_config = HOST
    return connector, wrapped


def test_every_member_of_the_base_class_is_overridden() -> None:
    """Guards against hooks of other vLLM releases, too: run with each of them."""
    assert {name for name in MEMBERS if name not in vars(ThresholdConnector)} == OWN


@pytest.mark.parametrize("name", FORWARDED)
def test_every_hook_passes_on_its_arguments_and_the_answer(name: str) -> None:
    connector, wrapped = wrapper()
    parameters = list(inspect.signature(MEMBERS[name]).parameters.values())[1:]
    given = [Mock(name=one.name) for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    more = {"extra": 1} if any(one.kind is one.VAR_KEYWORD for one in parameters) else {}
    answer = getattr(connector, name)(*given, **more)
    getattr(wrapped, name).assert_called_once_with(*given, **more)
    returned = inspect.signature(MEMBERS[name]).return_annotation
    if returned not in (None, "None", inspect.Signature.empty):
        assert answer is getattr(wrapped, name).return_value


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_is_the_wrapped_one(name: str) -> None:
    connector, wrapped = wrapper()
    for value in (True, False):
        setattr(type(wrapped), name, PropertyMock(return_value=value))
        assert getattr(connector, name) is value


def test_metadata_is_bound_to_both() -> None:
    connector, wrapped = wrapper()
    connector.bind_connector_metadata(metadata := Mock())
    assert connector.has_connector_metadata()
    wrapped.bind_connector_metadata.assert_called_once_with(metadata)
    connector.clear_connector_metadata()
    assert not connector.has_connector_metadata()


@pytest.mark.parametrize(
    ("found", "answered"),
    [((31, True), (0, False)), ((32, True), (32, True)), ((None, False), (None, False)), ((0, False), (0, False))],
)
def test_hit_is_declined_below_the_threshold_only(found: Any, answered: Any) -> None:
    connector, wrapped = wrapper(threshold=32)
    wrapped.get_num_new_matched_tokens.return_value = found
    wrapped.get_kv_connector_stats.return_value = None
    assert connector.get_num_new_matched_tokens(Mock(), 0) == answered
    stats = connector.get_kv_connector_stats()
    declined = {DECLINED_HITS: 1, DECLINED_TOKENS: 31} if found[0] == 31 else None
    assert (stats and stats.counters) == declined
    assert connector.get_kv_connector_stats() is None


def test_class_is_asked_with_the_configuration_of_what_is_wrapped() -> None:
    layerwise = {
        "kv_connector": "LayerwiseFileStoreConnector",
        "kv_connector_module_path": "kvconform.reference.layerwise_file_store",
        "kv_connector_extra_config": {"path": "/nowhere"},
    }
    assert ThresholdConnector.requires_piecewise_for_cudagraph({"connector": layerwise})
    plain = {"kv_connector": "FileStoreConnector", "kv_connector_module_path": "kvconform.reference.file_store"}
    assert not ThresholdConnector.requires_piecewise_for_cudagraph({"connector": plain})
    outer = KVTransferConfig(kv_role="kv_producer", kv_connector_extra_config={"connector": plain}, engine_id="e")
    inner = wrapped_config(outer)
    assert (inner.kv_role, inner.engine_id, inner.kv_connector) == ("kv_producer", "e", "FileStoreConnector")
    layout = ThresholdConnector.get_required_kvcache_layout(SimpleNamespace(kv_transfer_config=outer))
    assert layout is None


def test_wrapper_of_nothing_is_refused_with_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"kv_connector_extra_config\['connector'\]"):
        wrapped_config(KVTransferConfig(kv_role="kv_both"))


def test_statistics_of_both_are_merged_and_cross_as_plain_data() -> None:
    def stats(declined: int, loaded: int) -> ThresholdStats:
        return ThresholdStats.of({DECLINED_HITS: declined}, HostOffloadStats(data={"loaded_blocks": loaded}), HOST)

    merged = stats(1, 2).aggregate(stats(3, 5))
    sent = ThresholdConnector.build_kv_connector_stats(json.loads(json.dumps(merged.to_dict())))
    assert sent is not None
    assert sent.reduce() == {DECLINED_HITS: 4, "loaded_blocks": 7}
    assert not sent.is_empty()
    # One role counts what the other does not.
    one_sided = ThresholdStats.of({DECLINED_HITS: 1}, None, HOST)
    assert one_sided.aggregate(stats(0, 5)).reduce() == {DECLINED_HITS: 1, "loaded_blocks": 5}
    sent.reset()
    assert sent.is_empty()


def test_metrics_of_the_wrapped_connector_get_its_part() -> None:
    inner = Mock()
    metrics = ThresholdPromMetrics.__new__(ThresholdPromMetrics)
    metrics._wrapped = inner
    metrics.observe(ThresholdStats.of({}, HostOffloadStats(data={"loaded_blocks": 5}), HOST).to_dict(), 3)
    inner.observe.assert_called_once_with({"loaded_blocks": 5}, 3)
    metrics.observe({DECLINED_HITS: 1})
    inner.observe.assert_called_once()


# -- on the engine -----------------------------------------------------------------------------------------------------


def around(name: str, module: str, threshold: int = 0, **options: Any) -> dict[str, Any]:
    connector = {"kv_connector": name, "kv_connector_module_path": f"kvconform.reference.{module}"}
    return {"min_hit_tokens": threshold, "connector": {**connector, "kv_connector_extra_config": options}}


def played(program: Program, options: dict[str, Any], kind: type = ThresholdConnector) -> Examination:
    target = parse_target(f"kvconform.reference.threshold_connector:{kind.__name__}", Path.cwd())
    config = RunConfig(connector=(target.spec,), kv_connector_extra_config=options)
    return Conformance(target, config).examine(program)


STORE = around("FileStoreConnector", "file_store", path="{dir}")
ASYNC = around("AsyncFileStoreConnector", "async_file_store", path="{dir}")
LAYERWISE = around("LayerwiseFileStoreConnector", "layerwise_file_store", path="{dir}")
HOSTED = around("HostOffloadConnector", "host_offload", capacity_blocks=64)


@pytest.mark.parametrize("options", [STORE, ASYNC, LAYERWISE, HOSTED], ids=["sync", "async", "layerwise", "host"])
def test_a_wrapped_connector_works_as_it_does_alone(options: dict[str, Any]) -> None:
    for program in (transfer.reload().examples[0], transfer.preemption().examples[0]):
        examination = played(program, options)
        assert examination.findings == ()
    assert examination.witnesses["LOAD-01"]["external tokens compared"] > 0


def test_a_wrapped_connector_survives_a_restart_in_another_engine() -> None:
    examination = played(transfer.restart().examples[0], STORE)
    assert examination.findings == ()
    assert examination.capabilities["persistence"] > 0


def test_failures_of_a_wrapped_connector_are_reported() -> None:
    examination = played(failures.failed_loads("recompute").examples[0], STORE)
    assert examination.findings == ()
    assert examination.witnesses["FAIL-03"]["failed synchronous loads reported"] > 0


def test_events_and_statistics_of_a_wrapped_connector_come_out() -> None:
    witnesses = played(observability.varied().examples[0], HOSTED).witnesses
    assert witnesses["EVT-07"]["blocks named by events"] > 4
    assert witnesses["STAT-03"]["statistics rebuilt in the front-end"] > 0


def test_what_is_declined_is_computed() -> None:
    examination = played(transfer.reload().examples[0], {**ASYNC, "min_hit_tokens": 1 << 20})
    assert examination.findings == ()
    assert examination.witnesses["LOAD-01"].get("external tokens compared", 0) == 0
    assert examination.witnesses["STAT-03"]["statistics rebuilt in the front-end"] > 0


def test_hybrid_wrapper_takes_several_groups_and_refuses_what_cannot() -> None:
    hybrid_store = around("HybridFileStoreConnector", "hybrid_file_store", path="{dir}")
    examination = played(hybrid.several_groups().examples[0], hybrid_store, HybridThresholdConnector)
    assert examination.findings == ()
    assert examination.witnesses["HMA-02"]["loads with several groups"] > 0
    from kvconform.scenario.exploration import Refused

    with pytest.raises(Refused, match="supports no hybrid KV cache"):
        played(transfer.reload().examples[0], STORE, HybridThresholdConnector)
