"""Versions and names of what is installed, from its metadata: nothing is imported."""

from __future__ import annotations

import importlib.metadata
import platform

from kvconform.api import release_of
from kvconform.report.document import EMBEDDED, Distribution, Environment
from kvconform.target import Target


def installed_version(name: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(engine: str) -> Environment:
    """What this process runs on. With the engine 'embedded', vLLM is the release that it follows."""
    return Environment(
        vllm=release_of(engine) if engine == EMBEDDED else installed_version("vllm"),
        torch=installed_version("torch"),
        pytest=installed_version("pytest") or "unknown",
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
    )


def distribution_of(target: Target) -> Distribution | None:
    """The installed distribution that a connector's module belongs to; None for loose files."""
    top = "vllm" if target.module_path is None else target.module_path.partition(".")[0]
    # An editable install lists no modules; then a distribution of the same name is the best guess.
    for name in (*importlib.metadata.packages_distributions().get(top, ()), top):
        version = installed_version(name)
        if version is not None:
            return Distribution(name, version)
    return None
