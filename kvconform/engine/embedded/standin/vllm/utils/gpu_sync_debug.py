"""Where the CPU may wait for a GPU; here there is none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def gpu_sync_allowed(first_only: bool = False) -> AbstractContextManager[None]:
    """Nothing is watched."""
    return nullcontext()
