"""Plays programs on one engine in this process; a line of JSON per job in, a line of JSON per history out.

python player.py vllm|embedded < jobs > histories
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main(engine: str) -> None:
    """Until the end of the input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if engine == "embedded":
        from kvconform.engine.embedded import finder

        finder.install()
    from kvconform.api import prepare

    prepare("cpu")
    for line in sys.stdin:
        out.write(json.dumps(_play(json.loads(line))) + "\n")
        out.flush()
    if engine == "embedded":
        standin = str(finder.STANDIN)
        files = {name: str(getattr(module, "__file__", "")) for name, module in list(sys.modules.items())}
        real = [name for name, file in files.items() if name.split(".")[0] == "vllm" and not file.startswith(standin)]
        assert not real, f"modules of the installed vLLM were imported: {real}"


def _play(job: dict[str, Any]) -> dict[str, Any]:
    from kvconform.checks import examine
    from kvconform.config import RunConfig
    from kvconform.faults import load_faults
    from kvconform.isolation.codec import dump_history, load_program
    from kvconform.stage import Stage
    from kvconform.target import parse_target

    target = parse_target(job["spec"], ROOT)
    for folder in (target.search_path, ROOT / "tests/mutants", ROOT / "tests/odd"):
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))
    config = RunConfig(
        connector=(job["spec"],), kv_connector_extra_config=job["settings"], peer_timeout=job["peer_timeout"]
    )
    faults = load_faults(job["faults"], ROOT) if job["faults"] else None
    history = Stage(target, config, faults, patience=1.0).play(load_program(job["program"]))
    examination = examine(history)
    return {
        "history": dump_history(history),
        "findings": sorted({finding.rule for finding in examination.findings}),
        "witnesses": {rule: dict(seen) for rule, seen in examination.witnesses.items()},
    }


if __name__ == "__main__":
    main(sys.argv[1])
