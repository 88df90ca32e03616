"""The same jobs on both engines, and what differs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvconform.engine.options import EMPTY_STEP_LIMIT
from kvconform.isolation.codec import dump_program
from kvconform.scenario.program import Program

PLAYER = Path(__file__).with_name("player.py")
# Names that are drawn anew every time.
_RANDOM = re.compile(r"kvconform-\w+|[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f-]{27}|0x[0-9a-f]+|object at \w+")

# What is measured, or decided by what was measured before, and places in vLLM's code.
_MEASURED = frozenset({"where", "size_bytes", "seconds", "held_for", "hurried"})


@dataclass(frozen=True)
class Job:
    """One program on one connector."""

    name: str
    spec: str
    program: Program
    settings: tuple[tuple[str, Any], ...] = (("path", "{dir}"),)
    peer_timeout: float = 0.0
    faults: str = ""


def play(engine: str, jobs: Sequence[Job], timeout: float = 300) -> list[dict[str, Any]]:
    """What each job gives on an engine."""
    lines = [
        json.dumps(
            {
                "spec": job.spec,
                "settings": dict(job.settings),
                "peer_timeout": job.peer_timeout,
                "faults": job.faults,
                "program": dump_program(job.program),
            }
        )
        for job in jobs
    ]
    root = str(PLAYER.parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    ended = subprocess.run(
        [sys.executable, str(PLAYER), engine],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.returncode, len(results)) == (0, len(jobs)), ended.stderr[-3000:]
    return results


def differences(one: dict[str, Any], other: dict[str, Any], *, timed: bool = False) -> list[str]:
    """In words; nothing if both engines did the same.

    ``timed`` connectors transfer in threads, so that the number of steps without tokens varies from run to run: only
    what does not depend on it is compared.
    """
    found = []
    if one["findings"] != other["findings"]:
        found.append(f"findings: {one['findings']} and {other['findings']}")
    if timed:
        return found
    theirs, mine = list(events(one["history"])), list(events(other["history"]))
    for number, (a, b) in enumerate(zip(theirs, mine, strict=False)):
        if a != b:
            found.append(f"event {number}: {a} and {b}")
            break
    else:
        if len(theirs) != len(mine):
            found.append(f"{len(theirs)} and {len(mine)} events")
    return found


def events(history: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The events of a dumped history as text, without what is drawn anew, measured, or a place in vLLM's code."""
    for event in _without_waiting(history):
        kept = {key: value for key, value in event.items() if key not in _MEASURED}
        if event["event"] == "EngineRaised" or (event.get("error") and "vllm/" in (event.get("where") or "")):
            # vLLM's own words, and the stand-in's.
            kept["error"] = event["error"].partition(":")[0]
        if event["event"] == "Leaked":
            kept.pop("detail", None)
        if event["event"] == "StatisticsRead":
            # What msgpack's encoder refuses is refused in vLLM's words or in the stand-in's.
            kept["problems"] = [[*rest, text.partition(" raised ")[0]] for *rest, text in event["problems"]]
        yield masked(json.dumps(kept, sort_keys=True))


def _without_waiting(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Engines that give up do so after as many steps without tokens as the time allows: here after as few as can be."""
    kept: list[dict[str, Any]] = []
    left_out: dict[int, int] = {}
    for event in history:
        engine = event.get("engine", 0)
        if event["event"] == "NeverIdle" and event["limit"] > EMPTY_STEP_LIMIT and event["seconds"]:
            more = left_out[engine] = event["limit"] - EMPTY_STEP_LIMIT
            last = event["step"] - more
            kept = [other for other in kept if other.get("engine") != engine or other.get("step", 0) <= last]
            event = {**event, "limit": EMPTY_STEP_LIMIT}
        kept.append({**event, "step": event["step"] - left_out[engine]} if engine in left_out else event)
    return kept


def masked(text: str) -> str:
    """The text without names that are drawn anew."""
    return _RANDOM.sub("*", text)


def main(spec: str, pattern: str = "") -> int:
    """Play the examples of all families whose names match; what differs is printed."""
    from situations import families

    jobs = [
        Job(f"{name} #{number}", spec, program)
        for name, family in families()
        if re.search(pattern, name)
        for number, program in enumerate(family.examples)
    ]
    differ = 0
    for job, real, own in zip(jobs, play("vllm", jobs, 3600), play("embedded", jobs, 3600), strict=True):
        found = differences(real, own)
        differ += bool(found)
        for text in found:
            sys.stdout.write(f"{job.name}: {text}\n")
    sys.stdout.write(f"{differ} of {len(jobs)} programs differ\n")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
