"""pytest hooks of the kit: options, the marker, and switching the rest on.

Without ``--kvconform`` or ``--kvconform-config`` this module is all that is loaded. With them,
:mod:`kvconform.set_up` registers the hooks that run the kit. Imports neither torch nor vLLM.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvconform.config import RunConfig

_OPTION = "--kvconform"
_CONFIG_OPTION = "--kvconform-config"

_RUN_CONFIG: pytest.StashKey[RunConfig] = pytest.StashKey()


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, but expected is a whole number.") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, but expected is a number of seconds.") from None


def pytest_addoption(parser: pytest.Parser) -> None:
    # The choices are checked together with those of the TOML forms, see kvconform/config.py.
    group = parser.getgroup("kvconform", "conformance of vLLM KV connectors")
    group.addoption(
        _OPTION,
        action="append",
        dest="kvconform",
        metavar="SPEC",
        help="Connector to test: package.module:Class, path/to/file.py:Class or vllm:RegisteredName; repeatable.\n"
        "Runs the shipped suites unless tests are named.",
    )
    group.addoption(
        _CONFIG_OPTION,
        dest="kvconform_config",
        metavar="FILE",
        help="TOML file with connector, kv_role, kv_connector_extra_config, env and capabilities",
    )
    group.addoption(
        "--kvconform-engine", dest="kvconform_engine", metavar="auto|vllm|embedded", help="What drives the connector"
    )
    group.addoption(
        "--kvconform-device", dest="kvconform_device", metavar="auto|cpu|cuda", help="Where the KV caches are"
    )
    group.addoption(
        "--kvconform-budget",
        dest="kvconform_budget",
        metavar="quick|full",
        help="How much is tried: quick (default) for every commit, full for a release",
    )
    group.addoption(
        "--kvconform-seed", dest="kvconform_seed", type=_whole, metavar="N", help="Seed of all generated scenarios"
    )
    group.addoption(
        "--kvconform-timeout",
        dest="kvconform_timeout",
        type=_number,
        metavar="SECONDS",
        help="How long one scenario may take before the connector's process is killed (default 60)",
    )
    group.addoption(
        "--kvconform-report",
        dest="kvconform_report",
        action="append",
        default=[],
        metavar="FILE",
        help="Write the verdict on every rule to FILE.json, or as a page to FILE.html, for a CI job's page to FILE.md, "
        "as a badge to FILE.svg, each with FILE.json beside it; may be given more than once",
    )
    group.addoption(
        "--kvconform-baseline",
        dest="kvconform_baseline",
        metavar="FILE",
        help="TOML file of known failures and flaky rules, which then do not fail the run; empty for none",
    )
    group.addoption(
        "--kvconform-coverage",
        dest="kvconform_coverage",
        action="store_true",
        help="Measure which hooks and lines of the connector no rule exercises; needs kvconform[coverage]",
    )
    group.addoption(
        "--kvconform-bench",
        dest="kvconform_bench",
        action="store_true",
        help="After the tests, measure how fast the connector saves and loads and what its hooks cost; no verdict",
    )
    group.addoption(
        "--kvconform-bench-only", dest="kvconform_bench_only", action="store_true", help="Measure that, and run no test"
    )
    group.addoption(
        "--kvconform-bench-blocks",
        dest="kvconform_bench_blocks",
        metavar="N,N,...",
        help="Blocks of the prompts that are saved and loaded (default 8,64,256,1024)",
    )
    group.addoption(
        "--kvconform-bench-layouts",
        dest="kvconform_bench_layouts",
        metavar="NAME,...",
        help="Layouts that are measured (default LBNHC,LBHNC,hybrid)",
    )
    group.addoption(
        "--kvconform-cases",
        dest="kvconform_cases",
        metavar="DIR",
        help="Where failing scenarios are kept for kvconform replay (default .kvconform/cases)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # A vendor's conftest.py may import vLLM, so the environment has to be right before it is loaded.
    _prepare(early_config, early_config.known_args_namespace)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kvconform_rules(*ids): rules of the KV connector contract that a test checks (kvconform)"
    )
    _prepare(config, config.option)
    run_config = config.stash.get(_RUN_CONFIG, None)
    if run_config is None:
        # Options in a project's addopts wait for a run that has a connector; typed ones are meant for this run.
        typed = [str(arg).partition("=")[0] for arg in config.invocation_params.args]
        idle = next((name for name in typed if name.startswith(f"{_OPTION}-")), None)
        if idle is not None:
            add = f"{_OPTION}=my.module:MyConnector or {_CONFIG_OPTION}=FILE"
            raise pytest.UsageError(f"{idle} does nothing without a connector: add {add}.")
    else:
        from kvconform.set_up import start_session

        start_session(config, run_config)


def _prepare(config: pytest.Config, options: Any) -> None:
    """Read the configuration and set the environment, once; nothing when the kit was not asked for."""
    specs, file = getattr(options, "kvconform", None), getattr(options, "kvconform_config", None)
    if (not specs and file is None) or _RUN_CONFIG in config.stash:
        return
    from kvconform.config import read_run_config
    from kvconform.environment import prepare_environment
    from kvconform.errors import UsageError

    given = {key: getattr(options, f"kvconform_{key}") for key in ("engine", "device", "budget", "seed", "timeout")}
    baseline = getattr(options, "kvconform_baseline", None)
    given["baseline"] = os.path.normpath(config.invocation_params.dir / baseline) if baseline else baseline
    try:
        run_config = read_run_config(
            {"connector": specs, **given},
            None if file is None else Path(os.path.normpath(config.invocation_params.dir / file)),
            config.rootpath / "pyproject.toml",
        )
        if not run_config.connector:
            raise UsageError(
                f"{_CONFIG_OPTION}={file} names no connector: "
                f'add connector = "my.module:MyConnector" to it, or use {_OPTION}=my.module:MyConnector.'
            )
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_RUN_CONFIG] = run_config
    config.add_cleanup(prepare_environment(run_config))
