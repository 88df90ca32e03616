"""The way to vLLM: which vLLM a run uses, and on which platform.

Importing this package is cheap. Nothing here imports torch or vllm until :func:`prepare` is called.
"""

from __future__ import annotations

from kvconform.api.platform_plugin import request_platform
from kvconform.api.runtime import (
    NEWEST_TESTED_RELEASE,
    VllmRuntime,
    prepare,
    release_of,
    set_up,
    standin_in_place,
    vllm_version,
)

__all__ = [
    "NEWEST_TESTED_RELEASE",
    "VllmRuntime",
    "prepare",
    "release_of",
    "request_platform",
    "set_up",
    "standin_in_place",
    "vllm_version",
]
