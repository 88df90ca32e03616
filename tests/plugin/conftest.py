"""A vendor's project in a temporary folder, with a stand-in for the few names of vLLM that loading a target needs.

The stand-in keeps these tests in seconds: the plugin's manners do not depend on vLLM, and that they do not is one of
the things tested here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

VLLM_STAND_IN = {
    "vllm/__init__.py": "",
    "vllm/distributed/__init__.py": "",
    "vllm/distributed/kv_transfer/__init__.py": "",
    "vllm/distributed/kv_transfer/kv_connector/__init__.py": "",
    "vllm/distributed/kv_transfer/kv_connector/v1/__init__.py": "",
    "vllm/distributed/kv_transfer/kv_connector/v1/base.py": "class KVConnectorBase_V1: pass",
    "vllm/distributed/kv_transfer/kv_connector/factory.py": """
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

        class ExampleConnector(KVConnectorBase_V1): pass

        class KVConnectorFactory:
            _registry = {"ExampleConnector": None, "BrokenConnector": None}

            @classmethod
            def get_connector_class_by_name(cls, name):
                if name == "BrokenConnector":
                    raise ModuleNotFoundError("No module named 'lmstore'")
                return ExampleConnector
        """,
}

CONNECTOR = """
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    class MyConnector(KVConnectorBase_V1): pass
    class OtherConnector(KVConnectorBase_V1): pass
    class NotAConnector: pass
    def make(): pass
    """


class Project:
    """Files of a vendor's project, and pytest started in it as a command of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path: Path = pytester.path
        self.write({**VLLM_STAND_IN, "connector.py": CONNECTOR})

    def write(self, files: Mapping[str, str]) -> None:
        """Write files; leading indentation is removed."""
        for name, text in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")

    def run(self, *args: str) -> pytest.RunResult:
        """Run ``python -m pytest`` in the project's folder."""
        return self._pytester.runpytest_subprocess(*args)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A vendor's project with ``connector.py``; widths are generous so that no sentence is wrapped."""
    monkeypatch.setenv("COLUMNS", "250")
    for name in ("PYTEST_ADDOPTS", "HF_HUB_OFFLINE", "VLLM_HOST_IP", "VLLM_LOGGING_LEVEL", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)
