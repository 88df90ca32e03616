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
CONNECTORS = HERE / "connectors"
ROOT = HERE.parents[1]
BROKEN = (Verdict.FAIL, Verdict.WARN, Verdict.CRASH, Verdict.TIMEOUT, Verdict.KIT_ERROR)


@dataclass(frozen=True)
class SuiteRun:
    """The verdicts of a run: connector name -> rule id -> verdict."""

    verdicts: dict[str, dict[str, RuleVerdict]]
    output: str

    def broken(self, connector: str) -> set[str]:
        """The rules that the connector was found to break."""
        assert connector in self.verdicts, self.output
        return {rule for rule, verdict in self.verdicts[connector].items() if verdict.verdict in BROKEN}

    def text(self, connector: str, rule: str) -> str:
        """What the verdict's results say."""
        return "\n".join(self.verdicts[connector][rule].messages)

    def verdict(self, connector: str, rule: str) -> Verdict:
        """The verdict on one rule."""
        return self.verdicts[connector][rule].verdict


def run_suite(suite: str, connectors: Sequence[str], folder: Path) -> SuiteRun:
    """Run one suite file against connectors given as "file:Class" of the folder ``connectors``."""
    settings = folder / "kvconform.toml"
    settings.write_text('device = "cpu"\n[kv_connector_extra_config]\npath = "{dir}"\n')
    verdicts = folder / "verdicts.json"
    files = [(CONNECTORS / f"{name.partition(':')[0]}.py", name.partition(":")[2]) for name in connectors]
    targets = [f"--kvconform={file}:{name}" for file, name in files]
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
