"""What is left behind in the process when both roles were shut down, seen over several engines in a row."""

from __future__ import annotations

import pytest

from kvconform.checks import Finding
from kvconform.checks.model import BEFORE
from kvconform.conformance import Conformance
from kvconform.isolation.leftovers import ROUNDS
from kvconform.scenario import transfer
from kvconform.verdicts import NOT_SET_UP


@pytest.mark.kvconform_rules("SHUT-07")
def test_shutdown_leaves_no_thread_descriptor_or_file_behind(
    conformance: Conformance, request: pytest.FixtureRequest
) -> None:
    """After shutdown of both roles no thread, socket, shared memory segment or temporary file is left."""
    left, obstacle = conformance.leftovers(conformance.fitted(transfer.reload().examples[0]))
    findings = [
        Finding(
            "SHUT-07",
            f"as many as before of each {each.kind} once both roles were shut down",
            f"every engine leaves {each.per_round:g} more of kind {each.kind}: {', '.join(each.examples)}",
            BEFORE,
        )
        for each in left
    ]
    witnesses = {} if obstacle else {"engines shut down": ROUNDS}
    conformance.conclude(request, findings, {"SHUT-07": witnesses}, f"{NOT_SET_UP}: {obstacle}")
