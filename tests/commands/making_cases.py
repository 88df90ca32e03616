"""A case without a run: what a test would have saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvconform.cases.model import Case, Observation, Situation, Tested
from kvconform.cases.writer import CaseWriter
from kvconform.checks.model import Examination, Finding
from kvconform.config import RunConfig
from kvconform.engine.events import HookCall
from kvconform.engine.history import History
from kvconform.scenario import transfer
from kvconform.scenario.family import Family
from kvconform.scenario.program import Program
from kvconform.target import Target

TARGET = Target("my.module:MyConnector", "module", "my.module", "MyConnector", "my.module:MyConnector")
FAMILY = transfer.chunked_prefill()
PROGRAM = FAMILY.examples[0]
TEST = "test_transfer.py::test_chunks[my.module:MyConnector]"


def case(**changes: Any) -> Case:
    """A case of META-07."""
    assert FAMILY.control is not None
    facts: dict[str, Any] = {
        "kit": "0.1.0",
        "vllm": "0.32.0",
        "connector": Tested(TARGET.spec, TARGET.id, "kv_both", (), "cpu", 60.0, {"path": "{dir}"}),
        "test": TEST,
        "seed": 0,
        "how": "fail",
        "rules": ("META-07",),
        "situations": (Situation(FAMILY.name, FAMILY.rule, FAMILY.situation, (), FAMILY.control(PROGRAM)),),
        "observations": (Observation("META-07", "48 tokens", "32 tokens"),),
        "program": PROGRAM,
    }
    return Case(**{**facts, **changes})


def save(folder: Path, *, config: RunConfig | None = None, **changes: Any) -> Path | None:
    """A case as a run saves it."""
    facts: dict[str, Any] = {"family": FAMILY, "program": PROGRAM, "rules": ("META-07",), "writer": None, **changes}
    writer = facts.pop("writer") or CaseWriter(folder)
    family: Family = facts.pop("family")
    program: Program = facts.pop("program")
    return writer.save(TARGET, config or RunConfig(), TEST, family, program, **facts)  # type: ignore[no-any-return]


def finding(rule: str, observed: str) -> Finding:
    """One finding."""
    return Finding(rule, "right bytes", observed, HookCall(1, 1, "worker", "start_load_kv"))


def examination(*broken: str, symptom: bool = False, witnesses: dict[str, dict[str, int]] | None = None) -> Examination:
    """What playing shows when these rules are broken."""
    history = History()
    history.add(HookCall(1, 1, "worker", "start_load_kv"))
    findings = tuple(
        Finding(rule, "right bytes", f"wrong bytes of {rule}", history.events[0], symptom=symptom) for rule in broken
    )
    seen = {"LOAD-01": {"external tokens compared": 48}} if witnesses is None else witnesses
    return Examination(history, findings, {"LOAD-01": {}, **seen})
