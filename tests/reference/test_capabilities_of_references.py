"""Each capability of the suites has a reference connector that has it, seen at work, and one that has not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvconform.config import RunConfig
from kvconform.conformance import Conformance
from kvconform.engine.options import EngineOptions
from kvconform.scenario import (
    failures,
    finish,
    hand_offs,
    hybrid,
    observability,
    shutdown,
    transfer,
    workers,
)
from kvconform.scenario.program import Program
from kvconform.target import parse_target

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = {
    name: f"kvconform.reference.{name}:{kind}"
    for name, kind in (
        ("file_store", "FileStoreConnector"),
        ("async_file_store", "AsyncFileStoreConnector"),
        ("layerwise_file_store", "LayerwiseFileStoreConnector"),
        ("host_offload", "HostOffloadConnector"),
        ("hybrid_file_store", "HybridFileStoreConnector"),
        ("producer_consumer", "ProducerConsumerConnector"),
        ("threshold_connector", "ThresholdConnector"),
    )
}
#: Capability -> a reference with it, a reference without it, and what shows it.
SHOWN: dict[str, tuple[str, str, Callable[[], tuple[Program, ...]]]] = {
    "sync-load": ("file_store", "async_file_store", lambda: transfer.reload().examples[:1]),
    "async-load": ("async_file_store", "file_store", lambda: transfer.reload().examples[:1]),
    "delayed-free": ("async_file_store", "file_store", lambda: finish.blocks_handed_on().examples[:1]),
    "failure-report": ("file_store", "hybrid_file_store", lambda: failures.failed_loads("recompute").examples[:1]),
    "persistence": ("file_store", "host_offload", lambda: transfer.restart().examples[:1]),
    "hma": ("hybrid_file_store", "file_store", lambda: hybrid.several_groups().examples[:1]),
    "stats": ("host_offload", "file_store", lambda: observability.varied().examples[:1]),
    "events": ("host_offload", "file_store", lambda: observability.varied().examples[:1]),
    "worker-meta": ("file_store", "producer_consumer", lambda: transfer.reload().examples[:1]),
    "pd": ("producer_consumer", "file_store", hand_offs.demonstration),
}


@pytest.fixture(scope="module")
def tried() -> Callable[[str], Conformance]:
    """A reference connector's conformance object, one for all tests."""
    known: dict[str, Conformance] = {}

    def conformance(name: str) -> Conformance:
        if name not in known:
            target = parse_target(REFERENCES[name], ROOT)
            known[name] = Conformance(target, RunConfig(connector=(target.spec,)).for_target(target))
        return known[name]

    return conformance


@pytest.mark.parametrize("capability", SHOWN)
def test_reference_with_a_capability_is_seen_using_it(tried: Callable[[str], Conformance], capability: str) -> None:
    conformance = tried(SHOWN[capability][0])
    seen = [conformance.examine(program) for program in SHOWN[capability][2]()]
    assert all(examination.clean for examination in seen)
    assert sum(examination.capabilities.get(capability, 0) for examination in seen) > 0


@pytest.mark.parametrize("capability", SHOWN)
def test_reference_without_a_capability_is_never_seen_using_it(
    tried: Callable[[str], Conformance], capability: str
) -> None:
    conformance = tried(SHOWN[capability][1])
    (program, *_) = transfer.reload().examples
    seen = [conformance.examine(program), *map(conformance.examine, transfer.restart().examples[:1])]
    assert all(examination.clean for examination in seen)
    assert not any(examination.capabilities.get(capability, 0) for examination in seen)


def test_layerwise_is_told_from_the_class(tried: Callable[[str], Conformance]) -> None:
    assert tried("layerwise_file_store").capability("layerwise").detected
    assert not tried("file_store").capability("layerwise").detected


def test_every_reference_works_with_several_ranks(tried: Callable[[str], Conformance]) -> None:
    programs = [program for program in workers.several().examples if program.options.workers > 1]
    assert programs
    for name in ("file_store", "async_file_store", "hybrid_file_store", "host_offload"):
        for program in programs[:1]:
            assert tried(name).examine(program).clean
    assert EngineOptions().workers == 1


@pytest.mark.parametrize(
    "name", ["file_store", "async_file_store", "layerwise_file_store", "hybrid_file_store", "threshold_connector"]
)
def test_every_store_on_disk_serves_the_engine_after_a_restart(tried: Callable[[str], Conformance], name: str) -> None:
    examination = tried(name).examine(transfer.restart().examples[0])
    assert examination.clean
    assert examination.capabilities["persistence"] > 0


@pytest.mark.parametrize("name", ["file_store", "async_file_store"])
def test_store_on_disk_serves_the_engine_after_a_kill(tried: Callable[[str], Conformance], name: str) -> None:
    """The killed engine lives in a process of its own, so the next one knows nothing but the disk."""
    examination = tried(name).examine(shutdown.killed().examples[0])
    assert examination.clean
    assert examination.witnesses["LOAD-01"]["external tokens compared"] > 0


def test_host_memory_is_gone_with_its_engine(tried: Callable[[str], Conformance]) -> None:
    examination = tried("host_offload").examine(transfer.restart().examples[0])
    assert examination.clean
    assert examination.capabilities["persistence"] == 0
