"""Preparing the installed vLLM for a run in this process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache

from packaging.version import Version

from kvconform.api.platform_plugin import request_platform
from kvconform.errors import UsageError

OLDEST_RELEASE = Version("0.29.0")
NEWEST_TESTED_RELEASE = Version("0.33.0")
# What the engine 'embedded' follows.
STANDIN_RELEASE = "0.32.0"
#: How its refusals name it, whatever they are about.
EMBEDDED_WORDS = "engine 'embedded'"

# Set before vllm is imported, unless the user chose otherwise: no network, no log flood, loopback only, and the model
# runner V2's output shape is chosen per scenario instead of by platform (0.33.0 flips the default on platforms that it
# doesn't know, config/vllm.py, use_v2_model_runner).
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}

# More streams than the default of 8 hardware queues take would wait for each other without being told to.
_ON_CUDA = {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}


@dataclass(frozen=True)
class VllmRuntime:
    """The vLLM that this process runs: its release and the device of its KV caches."""

    release: Version
    device: str


def vllm_version() -> str | None:
    """The version of what ``import vllm`` gives here, found out without importing it: vLLM, the stand-in, or None."""
    if standin_in_place():
        return STANDIN_RELEASE
    if importlib.util.find_spec("vllm") is None:
        return None
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return None


def standin_in_place() -> bool:
    """Whether the engine 'embedded' has put its stand-in in vLLM's place in this process."""
    finder = sys.modules.get("kvconform.engine.embedded.finder")
    return finder is not None and bool(finder.installed())


def release_of(engine: str) -> str | None:
    """The vLLM release that an engine behaves as, or None if there is none."""
    return STANDIN_RELEASE if engine == "embedded" else vllm_version()


def set_up(device: str) -> None:
    """Choose the environment and the platform of this process, before anything of vLLM is imported."""
    for name, value in (_ENVIRONMENT | (_ON_CUDA if device == "cuda" else {})).items():
        os.environ.setdefault(name, value)
    request_platform(device)


@cache
def prepare(device: str = "cpu") -> VllmRuntime:
    """Import the installed vLLM on the platform for ``device`` and return what it is.

    Raises:
        UsageError: vLLM is absent, older than what the kit knows, or was imported on another platform before.
    """
    version = vllm_version()
    if version is None:
        raise UsageError(
            "vLLM is not installed in this environment, and the engine 'vllm' needs it: "
            "install vllm (0.32.0 is the release the kit is tested on)."
        )
    release = Version(Version(version).base_version)
    if release < OLDEST_RELEASE:
        # What setuptools-scm makes of a checkout without tags.
        untagged = Version(version).is_devrelease and release <= Version("0.1")
        raise UsageError(
            f"vLLM {version} is installed, but the engine 'vllm' drives releases from {OLDEST_RELEASE} on: "
            + (
                "vLLM was built from a checkout without its tags; fetch them, or set VLLM_VERSION_OVERRIDE to the "
                "release that it is nearest to, and build it again."
                if untagged
                else "install a newer vllm (0.32.0 is the release the kit is tested on most)."
            )
        )
    set_up(device)
    import vllm.platforms

    if device == "cpu":
        # The tensors of a scenario are tiny: a thread pool costs more than it brings, and starves xdist.
        import torch

        torch.set_num_threads(1)
    platform = vllm.platforms.current_platform
    if platform.device_type != device:
        raise UsageError(
            f"vLLM runs on the platform {type(platform).__name__} ({platform.device_type or 'no device'}) here, but "
            f"the run asked for --kvconform-device={device}: "
            "let kvconform start first (do not import vllm.platforms in a conftest.py before it), "
            "and check that the installed kvconform provides its 'vllm.platform_plugins' entry point."
        )
    return VllmRuntime(release=release, device=device)
