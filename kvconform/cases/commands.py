"""What to type to see a failure again: its test, or its scenario alone."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from kvconform.config import RunConfig
from kvconform.target import Target


def replay_command(path: Path, target: Target, config: RunConfig) -> str:
    """Plays the case in a file again."""
    command = ["kvconform", "replay", os.path.relpath(path), f"--kvconform={target.spec}"]
    if config.config_file is not None:
        command.append(f"--config={os.path.relpath(config.config_file)}")
    return shlex.join(command)


def rerun_command(nodeid: str, target: Target, config: RunConfig) -> str:
    """Runs one test again, all else being as in this run."""
    options = [f"--kvconform={target.spec}"]
    if config.config_file is not None:
        options.append(f"--kvconform-config={os.path.relpath(config.config_file)}")
    options += [
        f"--kvconform-{name}={value}"
        for name, value in (("engine", config.engine), ("device", config.device))
        if value != "auto"
    ]
    if config.seed:
        options.append(f"--kvconform-seed={config.seed}")
    if config.budget != "quick":
        options.append(f"--kvconform-budget={config.budget}")
    name = nodeid.rpartition("::")[2]
    return f"pytest {' '.join(options)} -k '{name.partition('[')[0]}'"
