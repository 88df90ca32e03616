"""Prometheus metrics as the front-end builds and fills them, in a registry of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from kvconform.engine.instrument import describe_error

Problem = tuple[str, str, str]
_LABELS = ("model_name", "engine")


class FrontEndMetrics:
    """vLLM's KVConnectorProm for one engine, built when the first statistics arrive.

    Args:
        vllm_config: the engine's; the front-end has no connector, only this.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._vllm_config = vllm_config
        self._prom: Any = None
        self._problems: tuple[Problem, ...] | None = None

    def observe(self, payload: dict[str, Any]) -> tuple[int, tuple[Problem, ...]] | None:
        """Give the payload to the metrics; (how many, what was wrong).

        None if the class builds no metrics, or if there is no front-end (the engine 'embedded'). Only what the
        connector sends is given: vLLM's own OffloadPromMetrics.observe refuses other payloads on purpose (0.32.0).
        """
        if self._problems is None:
            self._problems = tuple(self._build())
        if self._problems:
            return 0, self._problems
        if self._prom is None or self._prom.prom_metrics is None:
            return None
        try:
            self._prom.observe(copy.deepcopy(payload))
        except Exception as error:
            expected = "observe takes every payload that leaves the scheduler, also one in which keys are missing"
            text = f"observe raised {describe_error(error)[0]} for the keys {', '.join(map(str, sorted(payload)))}"
            return 1, (("STAT-05", expected, text),)
        return 1, ()

    def _build(self) -> Iterator[Problem]:
        try:
            from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
            from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorProm
        except ImportError:
            return
        registry = CollectorRegistry()

        def private(kind: Any) -> Any:
            def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
                kind.__init__(self, *args, **{**kwargs, "registry": registry})

            return type(kind.__name__, (kind,), {"__init__": initialise})

        class Metrics(KVConnectorProm):
            _gauge_cls, _counter_cls, _histogram_cls = private(Gauge), private(Counter), private(Histogram)

        before = set(REGISTRY._names_to_collectors)
        try:
            self._prom = Metrics(self._vllm_config, list(_LABELS), {0: ["model", "0"]})
        except Exception as error:
            expected = "build_prom_metrics works without an instance, from the configuration alone"
            yield "STAT-05", expected, f"it raised {describe_error(error)[0]}"
        added = {REGISTRY._names_to_collectors[name] for name in set(REGISTRY._names_to_collectors) - before}
        for collector in added:
            REGISTRY.unregister(collector)
            expected = "metrics made by the classes in metric_types, which another process may replace"
            yield "STAT-05", expected, f"{collector} was made by prometheus_client itself"


def below_multi_connector(multi: Any, payload: dict[str, Any], metrics: FrontEndMetrics) -> Iterator[Problem]:
    """What MultiConnector's front-end asks of its children's classes, by the names under which they are registered."""
    expected = "a class that is registered in KVConnectorFactory under its own name, also where it is given by module"
    try:
        multi.build_kv_connector_stats(copy.deepcopy(payload))
    except ValueError as error:
        yield "STAT-06", expected, f"MultiConnector.build_kv_connector_stats raised {describe_error(error)[0]}"
        return
    _, problems = metrics.observe(payload) or (0, ())
    for _, _, text in problems[:1]:
        yield "STAT-06", "Prometheus metrics of every child that has statistics", text
