"""Entry point of vLLM's ``vllm.platform_plugins`` group.

vLLM calls every installed platform plugin while it resolves ``current_platform``
(``vllm/platforms/__init__.py``, ``resolve_current_platform_cls_qualname``, 0.32.0), in each of its processes.
kvconform is installed beside production engines, so the plugin answers None unless kvconform itself, in this very
process, asked for its CPU platform. The request is a flag of the process: it is not inherited by child processes and
cannot be set from outside.
"""

from __future__ import annotations

_CPU_PLATFORM = "kvconform.api.cpu_platform.ConformanceCpuPlatform"


class _Request:
    """Whether this process asked for the conformance platform; module state because vLLM calls a plain function."""

    device: str | None = None


def request_platform(device: str) -> None:
    """Ask for the platform of ``device`` before vLLM resolves its own.

    ``"cpu"`` makes :func:`activate` offer the conformance CPU platform, ``"cuda"`` leaves the choice to vLLM.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', not {device!r}")
    _Request.device = device


def withdraw_platform() -> None:
    """Take the request back; a platform that vLLM already resolved stays for the life of the process."""
    _Request.device = None


def activate() -> str | None:
    """What vLLM calls: the dotted name of a Platform class, or None when this plugin has nothing to say."""
    return _CPU_PLATFORM if _Request.device == "cpu" else None
