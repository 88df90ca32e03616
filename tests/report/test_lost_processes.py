"""What is said of a connector's process that ended in the middle of a scenario."""

from __future__ import annotations

import pytest

from kvconform.isolation.room import CrashedError
from kvconform.report.failure_text import crashed_text


@pytest.mark.parametrize(
    ("how", "hinted"),
    [("was killed by SIGKILL", True), ("was killed by SIGSEGV", False), ("exited with code 1", False)],
)
def test_memory_is_thought_of_where_nobody_but_the_system_kills(how: str, hinted: bool) -> None:
    text = crashed_text(CrashedError(how, "the last line"), "reload", target="x:Y", reproduce=("pytest",))
    assert f"CRASH: the process of x:Y {how} during the scenario 'reload'." in text
    assert "  the last line" in text
    assert ("short of memory" in text) is hinted
