"""Both engines on the same programs: the same calls with the same arguments, the same blocks, the same verdicts.

All programs are played in one process per engine. Run as a program, ``comparing.py SPEC [REGEX]`` plays the examples of
all families of the suites on a connector.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from comparing import Job, differences, play
from situations import drawn, families

FILE_STORE = "kvconform.reference.file_store:FileStoreConnector"
LAYERWISE = "kvconform.reference.layerwise_file_store:LayerwiseFileStoreConnector"
HYBRID = "kvconform.reference.hybrid_file_store:HybridFileStoreConnector"
HOST = "kvconform.reference.host_offload:HostOffloadConnector"
ASYNCHRONOUS = "kvconform.reference.async_file_store:AsyncFileStoreConnector"

# Of the families that begin with these names, the first example goes to each connector; "+" also has one drawn.
CHOSEN: dict[str, tuple[str, ...]] = {
    FILE_STORE: (
        "transfer.reload+", "transfer.chunked_prefill+", "transfer.preemption+", "transfer.partly_local",
        "layouts.layout", "layouts.padded_pages", "finish.aborts", "reset.paused", "order.scheduled_ahead+",
        "order.asked_again", "failures.failed_loads", "identity.embeddings", "workers.several",
        "identity.look_alike(the order",
    ),
    LAYERWISE: ("transfer.reload", "transfer.full_hit"),
    HYBRID: ("hybrid.several_groups+", "hybrid.two_block_sizes+", "transfer.preemption"),
    HOST: ("transfer.reload", "observability.varied+", "finish.blocks_handed_on"),
}  # fmt: skip
MUTANTS = (
    "transfer:ReturnsAnInt", "transfer:CutsTwice", "transfer:RoundsUp", "transfer:OffersTheWholePrompt",
    "transfer:AlwaysAsynchronous", "transfer:CountsFromTheStart", "transfer:RefreshesTheLocalHit",
    "transfer:FillsTheNullBlock", "transfer:AppendsToOldTables", "transfer:HalvesTheLatent",
    "finish:AnswersWithABool", "events:RepeatsEvents",
)  # fmt: skip
MUTANTS_RUN = ("transfer.reload", "transfer.preemption")


def _jobs() -> list[Job]:
    known = dict(families())
    jobs = []
    for spec, names in CHOSEN.items():
        for name in names:
            matching = [full for full in known if full.startswith(name.rstrip("+"))]
            assert matching, f"there is no family {name}"
            for full in matching:
                family = known[full]
                programs = [*family.examples[:1], *(drawn(family, 1, seed=3) if name.endswith("+") else [])]
                jobs += [Job(f"{spec.rpartition(':')[2]} in {full} {n}", spec, p) for n, p in enumerate(programs)]
    for mutant in MUTANTS:
        module, name = mutant.split(":")
        for situation in MUTANTS_RUN:
            program = next(family for full, family in known.items() if full.startswith(situation)).examples[0]
            jobs.append(Job(f"{name} in {situation}", f"tests/mutants/{module}.py:{name}", program))
    for situation in ("asynchronous.loads_at_once", "finish.aborts"):
        program = next(family for full, family in known.items() if full.startswith(situation)).examples[0]
        jobs.append(Job(f"asynchronous in {situation}", ASYNCHRONOUS, program))
    return jobs


@pytest.fixture(scope="module")
def results() -> list[tuple[Job, dict[str, Any], dict[str, Any]]]:
    """What every job gives on vLLM and on the engine 'embedded'."""
    jobs = _jobs()
    with ThreadPoolExecutor(2) as pool:
        real, own = pool.map(lambda engine: play(engine, jobs, timeout=900), ("vllm", "embedded"))
    return list(zip(jobs, real, own, strict=True))


def test_reference_connectors_see_the_same_calls_in_the_same_order(
    results: list[tuple[Job, dict[str, Any], dict[str, Any]]],
) -> None:
    found = {
        job.name: differences(real, own) for job, real, own in results if job.spec in CHOSEN and differences(real, own)
    }
    assert not found


def test_mutants_break_the_same_rules_on_both_engines(
    results: list[tuple[Job, dict[str, Any], dict[str, Any]]],
) -> None:
    compared = [(job, real, own) for job, real, own in results if job.spec.startswith("tests/mutants")]
    assert not {job.name: differences(real, own) for job, real, own in compared if differences(real, own)}
    assert sum(bool(real["findings"]) for _, real, _ in compared) >= len(MUTANTS) / 2


def test_an_asynchronous_connector_gets_the_same_verdicts(
    results: list[tuple[Job, dict[str, Any], dict[str, Any]]],
) -> None:
    compared = [(real, own) for job, real, own in results if job.spec == ASYNCHRONOUS]
    assert compared
    for real, own in compared:
        # How many steps pass while a transfer is under way is different in every run.
        assert differences(real, own, timed=True) == []
        assert real["witnesses"].keys() == own["witnesses"].keys()


def test_the_scenarios_made_something_happen(
    results: list[tuple[Job, dict[str, Any], dict[str, Any]]],
) -> None:
    events = [event for _, real, _ in results for event in real["history"]]
    assert any(event["event"] == "Scheduled" and event["preempted"] for event in events)
    assert any(event["event"] == "Scheduled" and event["sync_loads"] for event in events)
    assert any(event["event"] == "Arrived" for event in events)
    assert any(event["event"] == "EngineRaised" for event in events)
