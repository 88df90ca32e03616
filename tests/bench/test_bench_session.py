"""``--kvconform-bench`` in a run of pytest: once, after the tests, and whatever the connector does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvconform.report.document import Document
from kvconform.report.json_report import read

PLANTED = Path(__file__).parent / "planted_speeds.py"
INERT = PLANTED.with_name("inert_connector.py")
REFERENCE = "kvconform.reference.host_offload:HostOffloadConnector"


OWN = """
import pytest
from kvconform.outcomes import record

@pytest.mark.usefixtures("kvconform_config")
@pytest.mark.kvconform_rules("MATCH-01")
def test_one(request):
    record(request, "MATCH-01", witnesses={"queries": 1})

def test_two(): pass
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A test file of a vendor, collected in a moment."""
    file = tmp_path / "test_own.py"
    file.write_text(OWN)
    return str(file)


def run(folder: Path, *args: str) -> tuple[int, str, Document]:
    """Exit status, output and report of a run on the kit's own engine, which starts in a moment."""
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "--color=no",
        "--kvconform-engine=embedded", "--kvconform-device=cpu", "--kvconform-bench-layouts=LBNHC",
        f"--kvconform-report={report}", f"--kvconform-report={folder / 'report.html'}", *args,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_CORE"))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, read(report)


@pytest.mark.timeout(300)
def test_beside_tests_it_is_measured_once_and_after_them_and_changes_no_verdict(tmp_path: Path, own: str) -> None:
    code, output, report = run(
        tmp_path, f"--kvconform={REFERENCE}", "--kvconform-bench", "--kvconform-bench-blocks=2,4", "-n", "2", own
    )
    assert code == 0, output[-3000:]
    assert output.count("kvconform bench: ") == 1
    assert output.count(" kvconform bench =") == 1
    (target,) = report.targets
    assert target.counts()["pass"] == 1
    assert report.run.tests.ran == 2
    assert target.bench is not None
    assert [(case.layout, case.blocks, case.problem) for case in target.bench.cases] == [
        ("LBNHC", 2, ""), ("LBNHC", 4, ""),
    ]  # fmt: skip
    for case in target.bench.cases:
        assert case.save.rounds >= 3
        assert case.load.bytes == case.blocks * case.bytes_per_block
    assert target.bench.cores >= 1
    assert "Speed" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.timeout(300)
def test_alone_it_runs_no_test_and_whatever_a_connector_does_costs_its_own_measurement_only(
    tmp_path: Path, own: str
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\nclass Mine: pass\n")
    names = (f"{PLANTED}:EndsItsProcess", f"{PLANTED}:Hangs", f"{INERT}:InertConnector", "broken.py:Mine")
    code, output, report = run(
        tmp_path, *(f"--kvconform={name}" for name in names), "--kvconform-bench-only",
        "--kvconform-bench-blocks=2,4", "--kvconform-timeout=6", own,
    )  # fmt: skip
    assert report.run.tests.ran == 0
    assert any("--kvconform-bench-only" in reason.sentence for reason in report.run.partial_reasons)
    ended, hung, nothing, broken = (target.bench for target in report.targets)
    assert ended is not None
    assert [case.problem for case in ended.cases] == ["the connector's process exited with code 3"]
    assert hung is not None
    assert [case.problem for case in hung.cases] == ["did not end within 6 s (--kvconform-timeout)"]
    assert nothing is not None
    assert [case.load.rounds for case in nothing.cases] == [0, 0]
    assert all(case.load.note and case.steps for case in nothing.cases)
    # One that cannot be imported was not tested at all: a usage error, as with the suites.
    assert broken is not None
    assert "no_such_package" in broken.reason
    assert "no_such_package" in report.unusable[0].sentence
    assert code == 4, output[-3000:]


def test_half_of_a_pair_is_not_measured_and_no_process_is_started_for_it(tmp_path: Path, own: str) -> None:
    config = tmp_path / "pair.toml"
    config.write_text(f'connector = "{REFERENCE}"\nkv_role = "kv_producer"\n')
    code, output, report = run(tmp_path, f"--kvconform-config={config}", "--kvconform-bench-only", own)
    assert code == 0, output[-3000:]
    assert "not measured: with kv_role = 'kv_producer' the connector is one half of a pair" in output
    assert "kvconform bench: " not in output
    assert report.targets[0].bench is not None
    assert report.targets[0].bench.cases == ()
