"""Signatures, fields and defaults of what ``import vllm`` gives, for the names that the stand-in has.

Run as a program it prints them as JSON: ``python surface.py vllm|embedded``.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import sys
from typing import Any

from uncovered import modules

# What connectors compute with: module and expression.
CALLS = (
    ("vllm.distributed.utils", "[get_pp_indices(11, rank, 4) for rank in range(4)]"),
    ("vllm.distributed.utils", "[get_pp_indices(7, rank, 2) for rank in range(2)]"),
    ("vllm.model_executor.models.utils", "extract_layer_index('model.layers.3.self_attn')"),
    ("vllm.model_executor.models.utils", "extract_layer_index('model.layers.3.attn.1', 2)"),
    ("vllm.utils.network_utils", "split_host_port('[::1]:80') + split_host_port('host:81')"),
    ("vllm.config.utils", "hash_factors({'b': 1, 'a': [2, None]})"),
    ("vllm.utils.torch_utils", "is_non_overlapping_and_dense(torch.zeros(2, 1, 3).transpose(0, 2))"),
    ("vllm.utils.torch_utils", "is_non_overlapping_and_dense(torch.zeros(4, 4)[:, :2])"),
    ("vllm.utils.torch_utils", "async_tensor_h2d([1, 2], device='cpu', dtype=torch.int32).tolist()"),
    ("vllm.v1.attention.backends.utils", "NULL_BLOCK_ID"),
    ("vllm.v1.kv_cache_interface", "SlidingWindowSpec(**_SPEC, sliding_window=64).page_size_bytes"),
    ("vllm.v1.kv_cache_interface", "(FullAttentionSpec.__module__, KVCacheLayout['LBNHC'].name)"),
    ("vllm.v1.core.kv_cache_utils", "resolve_dcp_kv_cache_spec(FullAttentionSpec(**_SPEC), 2).block_size"),
)


def describe(value: Any) -> Any:
    """A function's parameters, a class's fields and methods, an enum's members; None for other values."""
    if isinstance(value, type):
        if issubclass(value, enum.Enum):
            return {"members": {name: str(member.value) for name, member in value.__members__.items()}}
        return _of_class(value)
    if inspect.isfunction(value):
        return {"parameters": _parameters(value)}
    return None


def _of_class(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {"methods": {}, "properties": []}
    if dataclasses.is_dataclass(cls):
        found["fields"] = {field.name: _default(field) for field in dataclasses.fields(cls)}
    elif hasattr(cls, "__struct_fields__"):
        found["fields"] = dict.fromkeys(cls.__struct_fields__, "")
    for name, member in vars(cls).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, property) or type(member).__name__ == "cached_property":
            found["properties"].append(name)
            continue
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function):
            found["methods"][name] = _parameters(function)
    found["abstract"] = sorted(getattr(cls, "__abstractmethods__", ()))
    return found


def _parameters(function: Any) -> list[str]:
    """Names with their kinds, and constants that they default to; annotations are not compared."""
    shown = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        text = "" if default is parameter.empty else f" = {_plain(default)}"
        shown.append(f"{'*' * (parameter.kind in (2, 3))}{'/' * (parameter.kind == 3)}{parameter.name}{text}")
    return shown


def _default(field: Any) -> str:
    default, factory = field.default, field.default_factory
    if type(default).__name__ == "FieldInfo":
        default, factory = default.default, default.default_factory or dataclasses.MISSING
        default = dataclasses.MISSING if type(default).__name__ == "PydanticUndefinedType" else default
    if factory is not dataclasses.MISSING:
        return "made"
    return "" if default is dataclasses.MISSING else _plain(default)


def _plain(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (bool, int, float, str, tuple)) else type(value).__name__


def surface() -> dict[str, Any]:
    """By module and name."""
    found: dict[str, Any] = {}
    for name in modules():
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and getattr(value, "__module__", None) == name:
                described = describe(value)
                if described is not None:
                    found[f"{name}.{attribute}"] = described
    return found


def computed() -> dict[str, str]:
    """What the calls give, as text."""
    import torch

    names = {"torch": torch, "_SPEC": {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float16}}
    names |= vars(importlib.import_module("vllm.v1.kv_cache_interface"))
    return {code: repr(eval(code, {**names, **vars(importlib.import_module(name))})) for name, code in CALLS}


if __name__ == "__main__":
    if sys.argv[1] == "embedded":
        from kvconform.engine.embedded import finder

        finder.install()
    else:
        from kvconform.api import prepare

        prepare("cpu")
    sys.stdout.write(json.dumps({"surface": surface(), "computed": computed()}))
