"""Running shipped suites against connectors, all in one pytest process, because importing vLLM is what costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvconform.rules import load_catalogue
from kvconform.verdicts import RuleResult, RuleVerdict, Verdict, aggregate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = (HERE.parent / "mutants", HERE.parent / "odd")


@dataclass(frozen=True)
class SuiteRun:
    """The verdicts of a run: connector name -> rule id -> verdict."""

    verdicts: dict[str, dict[str, RuleVerdict]]
    output: str

    def text(self, connector: str, rule: str) -> str:
        """What the verdict's results say."""
        return "\n".join(self.verdicts[connector][rule].messages)

    def verdict(self, connector: str, rule: str) -> Verdict:
        """The verdict on one rule."""
        return self.verdicts[connector][rule].verdict


def _file(name: str) -> Path:
    (found,) = (folder / f"{name}.py" for folder in FOLDERS if (folder / f"{name}.py").is_file())
    return found


def run_suite(suite: str, connectors: Sequence[str], folder: Path) -> SuiteRun:
    """Run one suite file against connectors given as "file:Class" of tests/mutants or tests/odd."""
    settings = folder / "kvconform.toml"
    settings.write_text('device = "cpu"\n[kv_connector_extra_config]\npath = "{dir}"\n')
    verdicts = folder / "verdicts.json"
    targets = [f"--kvconform={_file(name.partition(':')[0])}:{name.partition(':')[2]}" for name in connectors]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "record_verdicts",
        f"--kvconform-config={settings}", *targets, str(ROOT / "suites" / suite),
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "KVCONFORM_TEST_VERDICTS": str(verdicts), "PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout[-20000:] + done.stderr[-4000:]
    assert verdicts.exists(), output
    results = [RuleResult.from_dict(entry) for entry in json.loads(verdicts.read_text())]
    by_connector: dict[str, dict[str, RuleVerdict]] = {}
    levels = {rule.id: rule.level for rule in load_catalogue()}
    for (target, rule), verdict in aggregate(results, levels).items():
        by_connector.setdefault(target.rpartition(":")[2], {})[rule] = verdict
    return SuiteRun(by_connector, output)
