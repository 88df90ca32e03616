"""The kernels that layers of the kit claim to have."""

from __future__ import annotations

from vllm.v1.attention.backend import AttentionBackend


class CPUAttentionBackend(AttentionBackend):
    """Kernels for the CPU."""

    @staticmethod
    def get_name() -> str:
        """Its name."""
        return "CPU_ATTN"
