"""A vendor's project with suites of its own in place of the shipped ones, so that a run without vLLM can be whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from kvconform.report.document import Document
from kvconform.report.json_report import read

_BASE = "vllm/distributed/kv_transfer/kv_connector/v1/base.py"
FILES = {
    **{f"{'/'.join(Path(_BASE).parts[:depth])}/__init__.py": "" for depth in range(1, 6)},
    _BASE: "class KVConnectorBase_V1: pass",
    "connector.py": """
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

        class MyConnector(KVConnectorBase_V1): pass
        class NotAConnector: pass
        """,
    # Loaded with -p, before the kit looks for its suites.
    "other_suites.py": """
        from pathlib import Path
        import kvconform.collection

        folder = Path(__file__).parent / "suites"
        kvconform.collection.suites_directory = lambda: folder
        """,
    "suites/test_some.py": """
        import os
        import signal
        import time
        import pytest
        from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, record

        ALWAYS = ("LIVE-01",)
        pytestmark = [pytest.mark.usefixtures("kvconform_target"), pytest.mark.kvconform_rules(*ALWAYS)]

        @pytest.fixture
        def kept(request):
            record(request, "LIVE-01", witnesses={"steps": 2})

        @pytest.mark.kvconform_rules("SIG-01")
        @pytest.mark.parametrize("number", range(3))
        def test_kept(request, kept, number):
            record(request, "SIG-01", witnesses={"constructions": number + 1, "other": 0})

        @pytest.mark.kvconform_rules("SIG-02")
        def test_broken(kept):
            if not os.environ.get("FIXED"):
                raise ConformanceFailure("SIG-02 broken: password=hunter2 is shown")

        @pytest.mark.kvconform_rules("SIG-05")
        def test_not_shown(kept):
            raise Inconclusive("no hit")

        @pytest.mark.kvconform_rules("SIG-06")
        def test_not_applicable(kept):
            raise NotApplicable("hma is not claimed")

        @pytest.mark.kvconform_rules("SIG-07")
        def test_dangerous(request, kept):
            what = os.environ.get("DANGER")
            if what == "exit":
                os._exit(3)
            if what == "interrupt":
                raise KeyboardInterrupt
            if what == "wait":
                with open("waiting", "w"):
                    time.sleep(120)
            if what == "skip":
                pytest.skip("no disk")
            record(request, "SIG-07", witnesses={"calls": 1})
        """,
}
SHIPPED = 5
TESTS = 7


class Project:
    """Files, and pytest started among them as a command of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, text in FILES.items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text), encoding="utf-8")

    def command(self, *args: str) -> list[str]:
        options = ("-p", "other_suites", "-p", "no:cacheprovider", "-p", "no:randomly", "--color=no")
        return [sys.executable, "-m", "pytest", *options, *args]

    def run(self, *args: str, connector: str = "connector:MyConnector", **environment: str) -> tuple[int, str]:
        """Exit status and output of a run that writes report.json."""
        done = subprocess.run(
            self.command(f"--kvconform={connector}", "--kvconform-report=report.json", *args),
            cwd=self.path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def interrupt(self, *args: str) -> int:
        """Exit status of a run that gets Ctrl-C while a test waits."""
        waiting = self.path / "waiting"
        process = subprocess.Popen(
            self.command("--kvconform=connector:MyConnector", "--kvconform-report=report.json", *args),
            cwd=self.path,
            env={**os.environ, "DANGER": "wait"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the whole group, xdist's workers too
            # A shell's background job ignores SIGINT, and what it starts inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        try:
            while not waiting.exists() and process.poll() is None:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            return process.wait(timeout=120)
        finally:
            process.kill()

    def report(self) -> Document:
        """What report.json says; its digest is right."""
        return read(self.path / "report.json")

    def data(self) -> object:
        """The plain JSON."""
        return json.loads((self.path / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in an empty folder."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "NO_COLOR", "FORCE_COLOR", "DANGER", "FIXED"):
        monkeypatch.delenv(name, raising=False)
    return Project(tmp_path)
