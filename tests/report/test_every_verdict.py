"""Every verdict there is, from a run to the terminal, JSON, HTML and Markdown; with and without xdist.

First with suites that come to each verdict by themselves, then with a connector on the real engine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from making import entry

from kvconform.report import html, markdown
from kvconform.report.building import with_times_removed
from kvconform.report.document import Document
from kvconform.report.json_report import read
from kvconform.report.verify import verify
from kvconform.rules import load_catalogue

if TYPE_CHECKING:
    from conftest import Project

SUITE = """
    import os
    import pytest
    from kvconform.outcomes import ConformanceFailure, Inconclusive, NotApplicable, record
    from kvconform.verdicts import Verdict

    pytestmark = pytest.mark.usefixtures("kvconform_target")

    @pytest.mark.kvconform_rules("SIG-01")
    def test_pass(request):
        record(request, "SIG-01", witnesses={"constructions": 2})

    @pytest.mark.kvconform_rules("SIG-02")
    def test_fail():
        raise ConformanceFailure("SIG-02 is broken like this")

    @pytest.mark.kvconform_rules("SIG-12")
    def test_warn():
        raise ConformanceFailure("SIG-12 is broken like this")

    @pytest.mark.kvconform_rules("SIG-04")
    def test_not_applicable():
        raise NotApplicable("hma is not claimed")

    @pytest.mark.kvconform_rules("SIG-05")
    def test_inconclusive():
        raise Inconclusive("no external hit")

    @pytest.mark.kvconform_rules("SIG-06")
    def test_timeout():
        raise ConformanceFailure("TIMEOUT: it hangs like this", verdict=Verdict.TIMEOUT)

    @pytest.mark.kvconform_rules("SIG-07")
    def test_crash():
        raise ConformanceFailure("CRASH: it ended like this", verdict=Verdict.CRASH)

    @pytest.mark.kvconform_rules("SIG-08")
    def test_kit_error():
        raise KeyError("a bug of the kit")

    @pytest.mark.kvconform_rules("SIG-09")
    def test_known():
        raise ConformanceFailure("SIG-09 is broken as known")

    @pytest.mark.kvconform_rules("SIG-10")
    def test_flaky(request):
        record(request, "SIG-10", witnesses={"constructions": 1})

    @pytest.mark.kvconform_rules("SIG-13")
    def test_setup_error():
        raise Inconclusive("the connector could not be set up: no store at 10.0.0.7:6379")
    """
BASELINE = """
    [[known]]
    rule = "SIG-09"
    reason = "to be mended"
    link = "https://example.org/9"
    [[flaky]]
    rule = "SIG-10"
    reason = "by chance"
    link = "https://example.org/10"
    """
# rule -> label in the terminal, verdict in the report, and what is said of it
EXPECTED = {
    "SIG-01": ("PASS", "pass", "2 constructions"),
    "SIG-02": ("FAIL", "fail", "SIG-02 is broken like this"),
    "SIG-12": ("WARN", "warn", "SIG-12 is broken like this"),
    "SIG-04": ("N/A", "not applicable", "hma is not claimed"),
    "SIG-05": ("INCONCLUSIVE", "inconclusive", "no external hit"),
    "SIG-06": ("TIMEOUT", "timeout", "TIMEOUT: it hangs like this"),
    "SIG-07": ("CRASH", "crash", "CRASH: it ended like this"),
    "SIG-08": ("KIT ERROR", "kit error", "KeyError: 'a bug of the kit'"),
    "SIG-09": ("KNOWN", "known failure", "to be mended"),
    "SIG-10": ("FLAKY", "flaky", "by chance"),
    "SIG-13": ("INCONCLUSIVE", "inconclusive", "the connector could not be set up: no store at 10.0.0.7:6379"),
}
#: Verdicts whose texts stand in a summary in Markdown.
IN_MARKDOWN = ("fail", "warn", "timeout", "crash", "kit error", "known failure", "flaky")


def section(output: str) -> str:
    """kvconform's part of pytest's output."""
    return output.partition("= kvconform =")[2]


def labels(output: str) -> dict[str, str]:
    """Rule -> label."""
    found = re.findall(r"^([A-Z/]+(?: [A-Z]+)?) +([A-Z]+-\d+) ", section(output), re.MULTILINE)
    return {rule: label for label, rule in found}


def page_of(document: Document) -> dict[str, tuple[str, str]]:
    """Rule -> verdict and text in the HTML page."""
    page = html.render(document)
    rules = re.findall(
        r'<details class="rule.*?data-verdict="(.*?)".*?class="id">(.*?)<(.*?)</section>', page, re.DOTALL
    )
    assert len(rules) > 0
    parts = re.split(r'(?=<details class="rule )', page)[1:]
    found = {}
    for part in parts:
        verdict = re.search(r'data-verdict="(.*?)"', part)
        rule = re.search(r'class="id">(.*?)<', part)
        assert verdict is not None
        assert rule is not None
        found[rule[1]] = (verdict[1], unescape(re.sub(r"<[^>]+>", "", part)))
    return found


def plain(text: str) -> str:
    """Markdown without what keeps it from being markup."""
    return re.sub(r"\\(.)", r"\1", text).replace("\u200b", "")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_verdict_is_shown_in_every_form(project: Project, workers: str) -> None:
    (project.path / "suites" / "test_some.py").write_text(dedent(SUITE))
    (project.path / "b.toml").write_text(dedent(BASELINE))
    code, output = project.run("-n", workers, "--kvconform-baseline=b.toml", COLUMNS="200")
    document = project.report()
    assert code == document.run.exit_status == 1, output
    assert labels(output) == {rule: label for rule, (label, _, _) in EXPECTED.items()}
    page, summary = page_of(document), plain(markdown.render(document))
    for rule, (_, verdict, words) in EXPECTED.items():
        found = entry(document, rule)
        assert found.verdict == verdict
        assert page[rule][0] == verdict
        assert words in page[rule][1]
        assert words in output
        if verdict in IN_MARKDOWN:
            assert re.search(rf"\| \S+ {verdict} \| {rule} \|", summary)
            assert words in summary
    assert "NOT SET UP connector:MyConnector: the connector could not be set up: no store" in output
    assert "**Not set up:** connector:MyConnector: the connector could not be set up: no store" in summary
    counts = ["1 fail", "1 crash"]
    assert all(count in section(output) for count in counts)
    rules = frozenset(EXPECTED)
    assert verify(project.data(), load_catalogue(), rules).problems == ()
    # Where a test runs, and in which order, changes nothing but what xdist itself adds to a test's id.
    assert {e.id: e.verdict for e in with_times_removed(document).targets[0].rules if e.id in rules} == {
        rule: verdict for rule, (_, verdict, _) in EXPECTED.items()
    }


CONNECTORS = '''
    import os
    import time

    from kvconform.reference.file_store import FileStoreConnector


    class Moody(FileStoreConnector):
        """Loads of an MLA cache end the process, of padded pages hang, and others have zeros in their second block."""

        def __init__(self, vllm_config, role, kv_cache_config):
            super().__init__(vllm_config, role, kv_cache_config)
            self.spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec

        def register_kv_caches(self, kv_caches):
            super().register_kv_caches(kv_caches)
            self.views = kv_caches

        def start_load_kv(self, forward_context, **kwargs):
            super().start_load_kv(forward_context, **kwargs)
            loads = self._step_metadata().loads
            if loads and type(self.spec).__name__ == "MLAAttentionSpec":
                print("out of ideas", flush=True)
                os._exit(3)
            if loads and self.spec.page_size_padded:
                time.sleep(600)
            for load in loads[1:2]:
                for view in self.views.values():
                    view[load.block_id] = 0
    '''
SETTINGS = """
    connector = "moody.py:Moody"
    timeout = 3
    device = "cpu"
    [kv_connector_extra_config]
    path = "{dir}"
    """
SITUATIONS = "an_mla_cache or padded_pages or behind_a_local_hit"


def test_a_connector_hangs_crashes_and_delivers_wrong_bytes_on_the_real_engine(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(dedent(CONNECTORS))
    (tmp_path / "k.toml").write_text(dedent(SETTINGS))
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "--color=no", "-n", "1",
        "--kvconform-config=k.toml", "-k", SITUATIONS, "--kvconform-report=r.json",
    ]  # fmt: skip
    environment = {**os.environ, "COLUMNS": "150"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    document = read(tmp_path / "r.json")
    (target,) = document.targets
    moody = {rule.id: rule for rule in target.rules}
    found = {rule: moody[rule].verdict for rule in ("LAY-14", "LAY-12", "LOAD-01")}
    assert found == {"LAY-14": "crash", "LAY-12": "timeout", "LOAD-01": "fail"}
    for form in (done.stdout, plain(markdown.render(document)), unescape(html.render(document))):
        assert "did not end the scenario 'reload' within 3 s" in form
        assert 'moody.py", line' in form, "the stack of the thread that hangs"
        assert "exited with code 3 during the scenario 'reload'" in form
        assert "out of ideas" in form
    assert "WRONG: zeros" in done.stdout
    assert {wrong.kind for picture in moody["LOAD-01"].pictures for wrong in picture.groups[0].wrong} == {"zero"}
