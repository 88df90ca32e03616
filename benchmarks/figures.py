"""From pytest-benchmark's JSON to the table of docs/performance.md: ``python figures.py RESULTS.json DOCUMENT.md``.

The best of all rounds counts: what else the machine does can only make a round slower.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
#: By figure and role.
Results = Mapping[tuple[str, str], Mapping[str, Any]]
MIB = 1 << 20
UNITS = ((1e6, "us"), (1e3, "ms"), (1.0, "s"))
#: Cores that others may take before the table warns of it.
QUIET = 0.1
NOT_MEASURED = "not measured in this run"


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``needs`` are the roles of the figure ``of`` that it is made from."""

    what: str
    of: str
    needs: tuple[str, ...]
    goal: str
    compute: Callable[..., float]
    met: Callable[[float], bool] | None
    unit: str = "x"
    digits: int = 2

    def line(self, results: Results) -> str:
        """Its row, in Markdown."""
        found = [result for role in self.needs if (result := results.get((self.of, role)))]
        if len(found) < len(self.needs):
            return f"| {self.what} | {NOT_MEASURED} | | {self.goal} | |"
        value = self.compute(*found)
        verdict = "" if self.met is None else "yes" if self.met(value) else "**no**"
        if value < 0:  # The kit cannot make a run shorter: something else went on during the other one.
            verdict = "disturbed"
        made_from = ", ".join(map(measured, found))
        return f"| {self.what} | {value:.{self.digits}f} {self.unit} | {made_from} | {self.goal} | {verdict} |"


def best(result: Mapping[str, Any]) -> float:
    """Seconds of the fastest round, or of a part of it if a round consists of equal parts."""
    return float(result["stats"]["min"]) / int(result["extra_info"].get("per", 1))


def measured(result: Mapping[str, Any]) -> str:
    """What a figure is made from, in words."""
    told = result["extra_info"]
    if "peak" in told:
        return ", ".join(f"{name} {told[name] / MIB:.0f} MiB" for name in ("peak", "imports", "pool"))
    taken = best(result)
    time = next(f"{taken * scale:.3g} {unit}" for scale, unit in UNITS if taken * scale < 1000)
    return f"{told['role']} {time}"


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """How many times as long the first one takes."""
    return best(one) / best(other)


def seconds(result: Mapping[str, Any]) -> float:
    """How long it takes."""
    return best(result)


def extra_milliseconds(one: Mapping[str, Any], _: Mapping[str, Any]) -> float:
    """What a round of the first one takes more than the round of the other one before it, the median."""
    return float(one["extra_info"]["more"]) * 1e3


def peak_ratio(result: Mapping[str, Any]) -> float:
    """Largest resident set over imports and pool."""
    told = result["extra_info"]
    return float(told["peak"]) / (told["imports"] + told["pool"])


def bytes_per_byte(result: Mapping[str, Any]) -> float:
    """What each byte of the pool costs."""
    told = result["extra_info"]
    return float(told["peak"] - told["imports"]) / float(told["pool"])


def _verification(size: str) -> tuple[Figure, ...]:
    of = f"Verification, {size}"
    at_most = "at most 1.3 x"
    return (
        Figure(
            f"Comparing {size}, over `torch.equal` on int64 views",
            of,
            ("kit", "torch.equal"),
            at_most,
            ratio,
            lambda x: x <= 1.3,
        ),
        Figure(
            f"`torch.testing.assert_close` on {size}, over the kit's comparison",
            of,
            ("assert_close", "kit"),
            "at least 20 x",
            ratio,
            lambda x: x >= 20,
            digits=1,
        ),
        Figure(f"Comparing {size}, over a copy (memcpy)", of, ("kit", "memcpy"), "", ratio, None),
        Figure(
            f"Gathering the slots of {size} and comparing, over `torch.equal`",
            of,
            ("kit, read", "torch.equal"),
            "",
            ratio,
            None,
        ),
        Figure(
            f"The same for {size} with the oracle's bytes computed anew, over `torch.equal`",
            of,
            ("kit, oracle", "torch.equal"),
            "",
            ratio,
            None,
            digits=1,
        ),
        Figure(
            f"Audit of a whole cache ({size}), over `torch.equal` on int64 views",
            f"Audit, {size}",
            ("kit", "torch.equal"),
            at_most,
            ratio,
            lambda x: x <= 1.3,
        ),
    )


def _memory(pool: str) -> tuple[Figure, ...]:
    return (
        Figure(
            f"Peak memory with a pool of {pool}, over imports and pool",
            "Memory",
            (pool,),
            "at most 1.5 x",
            peak_ratio,
            lambda x: x <= 1.5,
        ),
        Figure(
            f"Bytes for each byte of a pool of {pool}, without imports", "Memory", (pool,), "", bytes_per_byte, None
        ),
    )


FIGURES: tuple[Figure, ...] = (
    *_verification("8 MiB"),
    *_verification("128 KiB"),
    Figure(
        "One engine step with the oracle, over the bare scheduler's step",
        "Engine step",
        ("kit", "bare scheduler"),
        "at most 3 x",
        ratio,
        lambda x: x <= 3,
        digits=1,
    ),
    Figure(
        "The same, everything handed over as it is and not pickled",
        "Engine step",
        ("kit, no pickling", "bare scheduler"),
        "",
        ratio,
        None,
        digits=1,
    ),
    Figure(
        "What vLLM itself does in that step but for the model, over the bare scheduler's step",
        "Engine step",
        ("vLLM alone", "bare scheduler"),
        "",
        ratio,
        None,
        digits=1,
    ),
    Figure(
        "One engine step with the oracle, over what vLLM itself does in it",
        "Engine step",
        ("kit", "vLLM alone"),
        "",
        ratio,
        None,
        digits=1,
    ),
    Figure(
        "pytest with the plugin and without `--kvconform`, beyond bare pytest",
        "Start-up",
        ("kit", "bare pytest"),
        "at most 50 ms",
        extra_milliseconds,
        lambda x: x <= 50,
        "ms",
        1,
    ),
    Figure(
        "First, static answer on a connector's signatures: `kvconform inspect`, the whole process",
        "Static answer",
        ("kit",),
        "under 2 s",
        seconds,
        lambda x: x < 2,
        "s",
    ),
    Figure("`suites/test_transfer.py` in one process, over `-n 2`", "Scaling", ("-n 0", "-n 2"), "", ratio, None),
    *_memory("64 MiB"),
    *_memory("256 MiB"),
)


def machine(data: Mapping[str, Any]) -> str:
    """What was measured on, and what else went on there."""
    told, python = data["machine"], data["machine_info"]["python_version"]
    processor = data["machine_info"]["cpu"].get("brand_raw", "an unknown processor")
    device = "with a CUDA device" if told["cuda"] else "without a CUDA device"
    parts = [
        f"Measured on {processor}, {told['cores']} cores, {told['memory_gib']:.0f} GiB of memory, {device};",
        f"Python {python}, torch {version('torch')}, vLLM {version('vllm')}.",
        f"Load average at the start: {told['load']:.1f}. Other processes took {told['others']:.2f} cores on average.",
    ]
    if told["others"] > QUIET:
        parts.append("**The machine was busy: read these figures with care.**")
    return "\n".join(parts)


def _with_peers(benchmarks: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each measurement, and those that took turns with it as measurements of their own."""
    for one in benchmarks:
        yield one
        for role, turns in one["extra_info"].get("beside", {}).items():
            told = {"figure": one["extra_info"]["figure"], "role": role, "per": one["extra_info"].get("per", 1)}
            yield {"stats": {"min": min(turns)}, "extra_info": told}


def table(data: Mapping[str, Any]) -> str:
    """Machine and figures, in Markdown."""
    results = {(b["extra_info"]["figure"], b["extra_info"]["role"]): b for b in _with_peers(data["benchmarks"])}
    lines = [
        BEGIN,
        "",
        machine(data),
        "",
        "| what | figure | made from | goal | met |",
        "|---|---|---|---|---|",
        *(figure.line(results) for figure in FIGURES),
        "",
        END,
    ]
    return "\n".join(lines)


def main(results: Path, document: Path) -> None:
    """Write the table into the document, between its two marks."""
    before, begin, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{document} has no place for the figures: it needs the lines {BEGIN} and {END}.")
    written = table(json.loads(results.read_text()))
    document.write_text(f"{before}{written}{after}")
    print(written)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
