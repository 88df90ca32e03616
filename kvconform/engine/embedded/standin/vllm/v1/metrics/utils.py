"""Metrics of several engines."""

from __future__ import annotations

from typing import Any, TypeAlias

PromMetric: TypeAlias = Any


def create_metric_per_engine(
    metric: PromMetric, per_engine_labelvalues: dict[int, list[object]]
) -> dict[int, PromMetric]:
    """The metric with the labels of each engine."""
    return {engine: metric.labels(*values) for engine, values in per_engine_labelvalues.items()}
