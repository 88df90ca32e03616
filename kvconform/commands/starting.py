"""``kvconform init``: the files that a vendor's repository needs to try its connector on every commit."""

from __future__ import annotations

from pathlib import Path

import click

from kvconform.commands.output import write
from kvconform.errors import UsageError
from kvconform.target import parse_target

CONFIG = "kvconform.toml"
WORKFLOW = ".github/workflows/kvconform.yml"
_EXAMPLE = "my_package.my_module:MyConnector"


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--connector", "spec", metavar="SPEC", help="What pytest --kvconform would be given; it must exist.")
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init(folder: Path, spec: str | None, force: bool) -> None:
    """Write a commented kvconform.toml and a GitHub Actions workflow into DIR, the top of a repository."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: this is a file; give the path of a folder.")
    if spec is not None:
        parse_target(spec, folder.resolve())
    files = {folder / CONFIG: config_text(spec), folder / WORKFLOW: workflow_text()}
    taken = [str(file) for file in files if file.exists()]
    if taken and not force:
        are = "are" if len(taken) > 1 else "is"
        raise UsageError(f"{' and '.join(taken)} {are} there already: --force writes over, or choose another folder.")
    for file, text in files.items():
        write(file, text)
        click.echo(f"wrote {file}")
    click.echo(f"Next: read {folder / CONFIG}, then run: pytest --kvconform-config={folder / CONFIG}")


def config_text(spec: str | None) -> str:
    """The configuration file."""
    quoted = f"'{spec}'" if spec is not None and '"' in spec else f'"{spec or _EXAMPLE}"'
    return _CONFIG_TEXT.replace("@CONNECTOR@", quoted.replace("\\", "\\\\") if quoted[0] == '"' else quoted)


def workflow_text() -> str:
    """The workflow of GitHub Actions."""
    return _WORKFLOW_TEXT


_CONFIG_TEXT = """\
# Settings of kvconform, the conformance kit for vLLM KV connectors:
#   pytest --kvconform-config=kvconform.toml
# Every key may be left out. The command line goes before this file.

# The connector class: package.module:Class, path/to/file.py:Class (from this folder) or vllm:RegisteredName.
# A list tests several.
connector = @CONNECTOR@

# As in vLLM's KVTransferConfig: "kv_both", "kv_producer" or "kv_consumer".
kv_role = "kv_both"

# What you claim for the connector; what is claimed and does not work is a failure.
# 'kvconform rules' shows the names in its column "capability".
# capabilities = ["sync-load", "persistence"]

# Seconds that one scenario may take before the connector's process is killed.
timeout = 60

# Producers and consumers: seconds after which the connector, as configured here, gives up a silent peer.
# peer_timeout = 30.0

# Seconds after which a load or a save that has not ended counts as one that never will.
# transfer_timeout = 10.0

# Seconds until what the connector stores in the background can be found; left out, it is found by trial.
# store_delay = 0.1

# Tokens of the chunks in which the connector keeps KV; left out, they are found by trial.
# chunk_size = 256

# Whether each scenario's model and requests have names of their own, for one server that serves all scenarios; left
# out, it is found by trial whether they need them.
# fresh_model_names = true

# Producers and consumers whose router names hand-offs: what it adds to the kv_transfer_params of either side.
# producer_params = { transfer_id = "{transfer}" }
# consumer_params = { transfer_id = "{transfer}", remote_engine_id = "{producer}" }

# A class of yours that breaks the connector's store, where that is not made of files below {dir}.
# faults = "my_package.testing:StoreFaults"

# Known failures, each with a reason and a link; they do not fail the run, and make its result partial.
# baseline = "kvconform-baseline.toml"

# What vLLM hands to the connector. In strings, {dir} is a fresh folder of the scenario and {port} a free TCP port;
# a literal brace is written twice.
[kv_connector_extra_config]
# path = "{dir}/blocks"
# port = "{port}"

# Environment variables, set before vLLM is imported.
[env]
# MY_STORE_MODE = "test"

# The same for each engine alone, set while it starts: here placeholders count, and a port is another one per engine.
[engine_env]
# MY_SIDE_CHANNEL_PORT = "{port}"
"""

_WORKFLOW_TEXT = """\
# Tries the KV connector of this repository against vLLM's own scheduler. Needs no GPU.
name: kvconform

on:
  push:
  pull_request:
  schedule:
    - cron: "17 3 * * *"  # nightly: more scenarios, and others each day

jobs:
  conformance:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    env:
      VLLM_VERSION: "0.32.0"
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
          cache: pip
      # A vLLM without device code: its scheduler, KV cache manager and connectors are Python.
      - name: Install vLLM for no device
        run: |
          pip install torch==2.13.0 "setuptools>=77.0.3,<81" "setuptools-scm>=8" "setuptools-rust>=1.9"
          pip install wheel jinja2 packaging cmake ninja
          VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$VLLM_VERSION \\
            pip install --no-build-isolation --no-binary vllm vllm==$VLLM_VERSION
      - name: Install the connector and the kit
        run: pip install . kvconform pytest-xdist
      - name: Try every rule
        if: github.event_name != 'schedule'
        run: >-
          pytest --kvconform-config=kvconform.toml -n 2
          --kvconform-report=kvconform/report.html --kvconform-cases=kvconform/cases
      - name: Try every rule with many more scenarios
        if: github.event_name == 'schedule'
        run: >-
          pytest --kvconform-config=kvconform.toml -n 2
          --kvconform-report=kvconform/report.html --kvconform-cases=kvconform/cases
          --kvconform-budget=full --kvconform-seed=$(date +%Y%m%d)
      - name: Show the result
        if: always()
        run: |
          kvconform report kvconform/report.json --markdown - >> "$GITHUB_STEP_SUMMARY"
          kvconform verify kvconform/report.json
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: kvconform
          path: kvconform/
"""
