"""The process environment of a run: set before vLLM could be imported, restored afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from kvconform.config import RunConfig

#: No look-ups of models in the network: a conformance run has no model.
_FORCED = {"HF_HUB_OFFLINE": "1"}
#: No flood of log lines, addresses of this machine only, and one thread per process: the tensors are tiny, and xdist's
#: workers would fight over the cores. What the user has set stays.
_DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_HOST_IP": "127.0.0.1", "OMP_NUM_THREADS": "1"}


def prepare_environment(run_config: RunConfig) -> Callable[[], None]:
    """Set the environment variables and ask for the platform of the run's device.

    For the engine 'embedded' its stand-in takes vLLM's place in this process, too, so that conftest.py and test modules
    can import what the fixtures give; not if vLLM is imported here already, which the fixtures then say.

    Returns:
        A function that puts everything back.
    """
    from kvconform.api.platform_plugin import request_platform, withdraw_platform

    wanted = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
    wanted |= _FORCED | dict(run_config.env)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    request_platform(run_config.resolved_device)
    remove = _stand_in() if run_config.resolved_engine == "embedded" else None

    def restore() -> None:
        if remove is not None:
            remove()
        withdraw_platform()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


def _stand_in() -> Callable[[], None] | None:
    """Put the stand-in in vLLM's place; what takes it away again, or None if it was there or cannot come."""
    from kvconform.engine.embedded import finder

    if finder.installed() or "vllm" in sys.modules:
        return None
    finder.install()
    return finder.remove
