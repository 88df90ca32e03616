"""Placeholders of the configuration, filled in for one scenario or one engine: a directory, and ports of their own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from kvconform.config import RunConfig
from kvconform.placeholders import expand, placeholders


def engine_environment(config: RunConfig, directory: Path) -> dict[str, str]:
    """The environment variables of one more engine."""
    variables: dict[str, Any] = expand_freshly(config.engine_env, directory)
    return {name: str(value) for name, value in variables.items()}


def expand_freshly(value: Any, directory: Path) -> Any:
    """A configuration value with its placeholders filled in: this directory, and ports that nobody was given before."""
    values: dict[str, str | int] = {name: free_port() for name in sorted(placeholders(value)) if name != "dir"}
    return expand(value, {**values, "dir": str(directory)})


def free_port() -> int:
    """A TCP port that was free a moment ago on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
