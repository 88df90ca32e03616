"""The connector's own process, which also says what exactly happened in every program, findings or none."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from comparing import events, masked

from kvconform.checks import Examination
from kvconform.isolation import child
from kvconform.isolation.codec import dump_examination, dump_history


def dump_with_trace(examination: Examination) -> dict[str, Any]:
    """What the kit sends, and what two engines have to agree on: ``findings``, and a digest of the ``history``."""
    digest = hashlib.sha256("\n".join(events(dump_history(examination.history))).encode())
    findings = sorted(masked(f"{finding.rule}: {finding.observed}") for finding in examination.findings)
    return {**dump_examination(examination), "trace": {"findings": findings, "history": digest.hexdigest()}}


if __name__ == "__main__":
    child.dump_examination = dump_with_trace
    child.main(sys.argv[1:])
