"""kvconform is installed beside production engines: its platform is there for those who asked in this process only."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from kvconform.api import platform_plugin, prepare, vllm_version
from kvconform.api.platform_plugin import activate, request_platform, withdraw_platform
from kvconform.errors import UsageError

# One process that never asked: what vLLM makes of its platform, and what the kit says when it comes too late.
_BYSTANDER = """
import json, os, sys
import vllm.platforms
name = type(vllm.platforms.current_platform).__name__
seen = {"platform": name, "loaded": "kvconform.api.cpu_platform" in sys.modules}
from kvconform.api import prepare
from kvconform.errors import UsageError
seen["before"] = sorted(key for key in os.environ if key.startswith("VLLM_"))
try:
    prepare("cpu")
except UsageError as error:
    seen["error"] = str(error)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def bystander(vllm_cpu: object) -> dict[str, object]:
    """Started by a process that did ask: the request must not be inherited."""
    done = subprocess.run([sys.executable, "-c", _BYSTANDER], capture_output=True, text=True, timeout=120, check=True)
    seen: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


def test_the_plugin_is_installed() -> None:
    assert [entry.value for entry in entry_points(group="vllm.platform_plugins", name="kvconform")] == [
        "kvconform.api.platform_plugin:activate"
    ]


def test_a_process_that_did_not_ask_keeps_its_platform(bystander: dict[str, object]) -> None:
    assert bystander["platform"] != "ConformanceCpuPlatform"
    assert bystander["loaded"] is False


def test_coming_too_late_is_said_in_words(bystander: dict[str, object]) -> None:
    if bystander["platform"] == "CpuPlatform":
        pytest.skip("this vLLM is a CPU build: its own platform will do")
    error = str(bystander["error"])
    assert error.startswith(f"vLLM runs on the platform {bystander['platform']}")
    assert "the run asked for --kvconform-device=cpu" in error
    assert "let kvconform start first" in error


def test_this_process_asked_and_got_it(vllm_cpu: object) -> None:
    from vllm.platforms import current_platform

    assert type(current_platform).__name__ == "ConformanceCpuPlatform"
    assert current_platform.device_type == "cpu"
    assert current_platform.support_hybrid_kv_cache() is True
    assert prepare("cpu") is vllm_cpu, "prepared once"
    assert str(vllm_version() or "").startswith(str(prepare("cpu").release))


def test_the_plugin_answers_only_while_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_plugin._Request, "device", None)
    assert activate() is None
    request_platform("cuda")
    assert activate() is None
    request_platform("cpu")
    assert activate() == "kvconform.api.cpu_platform.ConformanceCpuPlatform"
    withdraw_platform()
    assert activate() is None
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', not 'tpu'"):
        request_platform("tpu")


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (None, "vLLM is not installed in this environment"),
        ("0.11.2", "vLLM 0.11.2 is installed, but the engine 'vllm' drives releases from 0.29.0 on: install a newer"),
        ("0.28.1.dev5", "vLLM 0.28.1.dev5 is installed, but .* on: install a newer vllm"),
        # A checkout whose tags were not fetched.
        ("0.1.dev1+gabc123", "vLLM 0.1.dev1.gabc123 is installed, .*: vLLM was built from a checkout without its tags"),
    ],
)
def test_no_or_an_old_vllm_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, version: str | None, sentence: str
) -> None:
    from kvconform.api import runtime

    monkeypatch.setattr(runtime, "vllm_version", lambda: version)
    with pytest.raises(UsageError, match=sentence):
        runtime.prepare.__wrapped__("cpu")


def test_a_device_that_vllm_does_not_run_on_is_a_usage_error(vllm_cpu: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvconform.api import runtime

    monkeypatch.setattr(platform_plugin._Request, "device", "cpu")
    with pytest.raises(
        UsageError, match=r"ConformanceCpuPlatform \(cpu\).* but the run asked for --kvconform-device=cuda"
    ):
        runtime.prepare.__wrapped__("cuda")
