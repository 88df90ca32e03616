"""What a vendor's own tests need beside the fixtures: the types that fixtures take and return, and scenarios as data.

Importing this package imports torch, and not vLLM.
"""

from __future__ import annotations

from kvconform.checks import Examination, Finding, examine
from kvconform.engine.history import History
from kvconform.engine.options import EngineOptions
from kvconform.engine.protocol import EngineStopped
from kvconform.kvcache.shape import DTYPES, LAYOUTS, KVCacheShape, LayerShape, ShapeError
from kvconform.scenario.exploration import Refused
from kvconform.scenario.program import (
    Abort,
    Add,
    Drain,
    ForgetLocal,
    PreemptAll,
    Program,
    RequestSpec,
    ResetConnector,
    Restart,
    Step,
)
from kvconform.testing.cache import KVCacheConfigFactory, KVCachePlan
from kvconform.testing.configuration import SharedStore, VllmConfigFactory
from kvconform.testing.connector import ConnectorFactory
from kvconform.testing.engine import EngineFactory
from kvconform.testing.request import RequestFactory
from kvconform.testing.tensors import KVTensors, KVTensorsFactory

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "Abort",
    "Add",
    "ConnectorFactory",
    "Drain",
    "EngineFactory",
    "EngineOptions",
    "EngineStopped",
    "Examination",
    "Finding",
    "ForgetLocal",
    "History",
    "KVCacheConfigFactory",
    "KVCachePlan",
    "KVCacheShape",
    "KVTensors",
    "KVTensorsFactory",
    "LayerShape",
    "PreemptAll",
    "Program",
    "Refused",
    "RequestFactory",
    "RequestSpec",
    "ResetConnector",
    "Restart",
    "ShapeError",
    "SharedStore",
    "Step",
    "VllmConfigFactory",
    "examine",
]
