"""Shared by all of the project's tests: which vLLM platform this process gets, and vLLM itself, prepared once."""

from __future__ import annotations

import pytest

from kvconform.api import VllmRuntime, prepare, request_platform

# vLLM resolves its platform once per process, possibly while pytest imports a test module that imports vLLM. Asking for
# the conformance platform costs nothing and imports nothing.
request_platform("cpu")


@pytest.fixture(scope="session")
def vllm_cpu() -> VllmRuntime:
    """The installed vLLM on the conformance CPU platform, imported once per process (about 8 s)."""
    return prepare("cpu")
