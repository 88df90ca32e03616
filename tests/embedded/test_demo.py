"""What ``make demo`` shows where vLLM is not installed: a reference that passes, and a mutant that fails in the same
words as on the real engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from comparing import masked

from kvconform.api import vllm_version

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_VLLM = str(ROOT / "tests/embedded/without_vllm.py")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
REFERENCE, DEFECTIVE, TEST = (
    re.search(rf"^{name} := (.+)$", MAKEFILE, re.MULTILINE).group(1)  # type: ignore[union-attr]
    for name in ("REFERENCE", "DEFECTIVE", "DEFECTIVE_TEST")
)


def run(command: list[str], folder: Path, connector: str) -> tuple[int, str]:
    """Exit code and output of the demo's test."""
    ended = subprocess.run(
        [
            sys.executable, *command, "-q", "-p", "no:cacheprovider", "--kvconform-device=cpu", "-k", TEST,
            f"--kvconform-cases={folder}", connector,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout.replace(str(folder), "CASES")


def failure(output: str) -> str:
    """The text of the one failure, without places in vLLM's code and names drawn anew."""
    found = re.search(r"^META-02 \(MUST\) broken by .*?(?=^Reproduce)", output, re.DOTALL | re.MULTILINE)
    assert found is not None, output[-3000:]
    return masked(re.sub(r" \(vllm/\S+ in \w+\)", "", found.group()))


def test_reference_passes_and_mutant_fails_without_vllm(tmp_path: Path) -> None:
    code, output = run(["-m", "pytest", "--kvconform-engine=embedded"], tmp_path, f"--kvconform={REFERENCE}")
    assert code == 0, output[-3000:]
    assert re.search(r"^PASS +META-02 ", output, re.MULTILINE)
    code, output = run([WITHOUT_VLLM], tmp_path, f"--kvconform-config={DEFECTIVE}")
    assert code == 1, output[-3000:]
    assert "no vLLM (its 0.32.0 is imitated)" in output
    assert re.search(r"^FAIL +META-02 ", output, re.MULTILINE)


@pytest.mark.skipif(not str(vllm_version()).startswith("0.32"), reason="the stand-in follows vLLM 0.32.0")
def test_mutant_fails_in_the_same_words_as_on_the_real_engine(tmp_path: Path) -> None:
    texts = [
        failure(run(command, tmp_path, f"--kvconform-config={DEFECTIVE}")[1])
        for command in (["-m", "pytest", "--kvconform-engine=vllm"], [WITHOUT_VLLM])
    ]
    assert texts[0] == texts[1]
