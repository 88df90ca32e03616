"""Several workers and their votes, on hand-made histories."""

from __future__ import annotations

from typing import Any

import pytest
from histories import alloc, found, raised, witness

from kvconform.engine.events import Event, HookCall, NeverIdle, ReportsMerged, ReportTested, StoreBroken


def on(rank: int, hook: str, result: Any = None, *, step: int = 1, engine: int = 1, role: Any = "worker") -> HookCall:
    return HookCall(engine, step, role, hook, {}, result, rank=rank)


def workers(count: int, *, engine: int = 1) -> tuple[Event, ...]:
    """As they come up, the last one first: their order tells nothing."""
    return tuple(on(rank, "register_kv_caches", step=0, engine=engine) for rank in reversed(range(count)))


def counted(result: Any, *, engine: int = 1) -> HookCall:
    return on(0, "get_finished_count", result, step=0, engine=engine, role="scheduler")


def voted(rank: int, *, received: Any = (), sent: Any = (), step: int = 2, engine: int = 1) -> HookCall:
    outcome = {"finished_sending": sent, "finished_recving": received, "failed_recving": []}
    return on(rank, "get_transfer_results", outcome, step=step, engine=engine)


def before_030(rank: int, *, received: Any = (), sent: Any = ()) -> HookCall:
    return on(rank, "get_finished", ({"set": list(sent)}, {"set": list(received)}), step=2)


def stuck(*unfinished: str, engine: int = 1) -> NeverIdle:
    return NeverIdle(engine, 99, 90, unfinished)


# -- how many votes make a completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*workers(2), counted(3)), 1),
        ((*workers(2), counted(2)), 0),
        ((*workers(2), counted(None)), 0),
        # None and 0 leave it to vLLM, which asks for every worker's vote; so does a count that is no number.
        ((*workers(2), counted(0)), 0),
        ((*workers(2), counted("3")), 0),
        ((*workers(2), counted(3), counted(None)), 0),
        ((*workers(1), counted(3)), 0),
        ((*workers(1, engine=2), *workers(2), counted(3)), 1),
        ((counted(3),), 0),
        ((*workers(2), *workers(1, engine=2), counted(3, engine=2)), 0),
    ],
)
def test_more_votes_than_workers_never_come(events: tuple[Event, ...], count: int) -> None:
    findings = found("TP-01", *events)
    assert len(findings) == count
    assert all(finding.observed == "get_finished_count returned 3 for 2 workers" for finding in findings)


def test_every_engine_with_too_high_a_count_is_told() -> None:
    high = (*workers(2), counted(3), *workers(3, engine=2), counted(4, engine=2))
    assert [finding.at.engine for finding in found("TP-01", *high)] == [1, 2]


@pytest.mark.parametrize(
    ("events", "ranks"),
    [
        # Both vote, and vLLM takes the first vote for the end: the second one is of a request that is gone.
        ((counted(1), voted(0, received=["r1"]), voted(1, received=["r1"], step=3)), "0, 1"),
        ((counted(1), voted(1, sent=["r1"]), voted(0, sent=["r1"])), "0, 1"),
        ((counted(1), voted(1, sent=["r1"]), voted(0, received=["r1"])), None),
        ((counted(1), voted(1, sent=["r1"]), voted(1, sent=["r1"])), None),
        ((counted(1), voted(1, sent=["r1"]), voted(0, sent=["r2"])), None),
        ((counted(2), voted(0, received=["r1"]), voted(1, received=["r1"])), None),
        ((counted(2), voted(1, received=["r1"]), stuck("r1")), "1"),
        ((counted(2), voted(1, received=["r1"])), None),
        ((counted(2), voted(1, received=["r1"]), stuck("r2")), None),
        ((counted(2), voted(1, received=["r1"]), stuck("r1", engine=2)), None),
        ((counted(2), voted(0, received=["r1"]), voted(1, received=["r1"]), stuck("r1")), None),
        ((counted(None), voted(1, received=["r1"]), stuck("r1")), None),
        ((counted(0), voted(1, received=["r1"])), None),
        ((counted(1), voted(0, received=None, sent=None), voted(1)), None),
        ((counted(1), on(0, "get_transfer_results", "a pair"), on(1, "get_transfer_results")), None),
    ],
)
def test_count_has_to_be_that_of_the_workers_that_report_each_completion(
    events: tuple[Event, ...], ranks: str | None
) -> None:
    findings = found("TP-01", *workers(2), *events)
    assert len(findings) == (ranks is not None)
    for finding in findings:
        assert finding.requests == ("r1",)
        assert finding.observed.endswith(f" by the workers of rank {ranks}")
        assert finding.at is [event for event in events if isinstance(event, HookCall)][-1], "the last vote"


def test_one_request_that_was_miscounted_is_told_of_every_engine() -> None:
    votes = [voted(rank, sent=["r1"], received=["r2"]) for rank in range(2)]
    others = [voted(rank, sent=["r1"], engine=2) for rank in range(2)]
    first, second = found(
        "TP-01", *workers(2), counted(1), *votes, *workers(2, engine=2), counted(1, engine=2), *others
    )  # fmt: skip
    # The second one may have died of it, which is no second defect.
    assert (first.at.engine, second.at.engine) == (1, 2)
    assert first.requests == ("r1",)


def test_too_many_votes_are_told_where_the_engine_died_of_them() -> None:
    votes = (*workers(2), counted(1), voted(0, received=["r1"]), voted(1, received=["r1"]))
    died = raised(None, step=3)
    assert found("TP-01", *votes, raised(None, engine=2), died, raised(None, step=4))[0].at is died
    assert found("TP-01", *votes, raised(None, engine=2))[0].at is votes[-1]
    # Too few of them end nothing: what raised had another reason.
    late = (*workers(2), counted(2), voted(0, received=["r1"]), stuck("r1"))
    assert found("TP-01", *late, died)[0].at is late[-2]


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ((*workers(2), voted(0, received=["r1"], sent=["r2"]), voted(1, received=["r1"])), 2),
        ((*workers(1), voted(0, received=["r1"])), 0),
        ((*workers(2), *workers(1, engine=2), voted(0, received=["r1"], engine=2)), 0),
        ((*workers(2), voted(0)), 0),
        # vLLM 0.29.0 asks for get_finished itself; from then on it is get_transfer_results that does.
        ((*workers(2), before_030(0, received=["r1"]), before_030(1, received=["r1"], sent=["r2"])), 2),
        ((*workers(2), before_030(0, received=["r1"]), voted(0)), 0),
        ((*workers(2), before_030(0, received=["r1"]), voted(0, received=["r1"])), 1),
        ((*workers(2), voted(0, engine=2), before_030(0, received=["r1"])), 1),
    ],
)
def test_completions_of_several_workers_are_counted(events: tuple[Event, ...], count: int) -> None:
    assert witness("TP-01", *events) == count


# -- what several workers hand out -------------------------------------------------------------------------------------


def stats(rank: int, kind: str | None, **more: Any) -> HookCall:
    return on(rank, "get_kv_connector_stats", kind, **more)


@pytest.mark.parametrize(
    ("events", "mixed", "several"),
    [
        ((stats(0, "<a.Stats>"), stats(1, "<b.Stats>")), 1, 1),
        ((stats(0, "<a.Stats>"), stats(1, "<a.Stats>")), 0, 1),
        ((stats(0, "<a.Stats>"), stats(1, None)), 0, 0),
        ((stats(0, "<a.Stats>"), stats(1, "<b.Stats>", step=2)), 0, 0),
        ((stats(0, "<a.Stats>"), stats(1, "<b.Stats>", engine=2)), 0, 0),
        ((stats(0, "<a.Stats>"), stats(1, "<b.Stats>", role="scheduler")), 0, 0),
        ((stats(0, "<a.Stats>"), stats(0, "<a.Stats>")), 0, 0),
        ((stats(0, "<a.Stats>"), stats(1, "<b.Stats>"), stats(0, "<a.Stats>", step=2), stats(1, "<b.Stats>", step=2)),
         1, 2),
    ],
)  # fmt: skip
def test_statistics_of_all_workers_are_of_one_class(events: tuple[Event, ...], mixed: int, several: int) -> None:
    findings = found("TP-04", *events)
    assert len(findings) == mixed
    assert all(each.observed == "<a.Stats> from rank 0 and <b.Stats> from rank 1" for each in findings)
    assert witness("TP-04", *events) == several


def test_mixed_statistics_are_told_of_a_worker() -> None:
    mixed = (stats(0, "<a.Stats>"), stats(1, "<b.Stats>"))
    assert found("TP-04", stats(0, None, role="scheduler"), *mixed)[0].at is mixed[0]


def test_first_merge_with_a_problem_is_told_and_every_merge_counts() -> None:
    right, lost, again = ReportsMerged(1, 1), ReportsMerged(1, 2, "returned None"), ReportsMerged(1, 3, "lost 'a'")
    (finding,) = found("TP-05", right, lost, again)
    assert (finding.at, finding.observed) == (lost, "returned None")
    assert found("TP-05", right) == []
    assert witness("TP-05", right, lost, again) == 3


def test_first_false_report_that_carries_something_is_told_and_every_report_counts() -> None:
    right = ReportTested(1, 1, "statistics", 0)
    lost, again = ReportTested(1, 2, "events", 1, "3 blocks"), ReportTested(1, 3, "events", 0, "1 block")
    (finding,) = found("TP-10", right, lost, again)
    assert (finding.at, finding.observed) == (lost, "the events of rank 1 are false and hold 3 blocks")
    assert found("TP-10", right) == []
    assert witness("TP-10", right, lost, again) == 3


@pytest.mark.parametrize(
    ("events", "files"),
    [
        ((*workers(2), StoreBroken(1, 3, "data", "removed", 3), StoreBroken(1, 4, "data", "removed", 2)), 5),
        ((*workers(2), StoreBroken(1, 3, "writes", "full", 3)), 0),
        ((*workers(1), StoreBroken(1, 3, "data", "removed", 3)), 0),
        ((*workers(2, engine=2), StoreBroken(1, 3, "data", "removed", 3)), 0),
    ],
)
def test_shards_count_that_several_workers_had_stored(events: tuple[Event, ...], files: int) -> None:
    assert witness("TP-11", *events) == files


def test_loads_of_several_workers_are_counted() -> None:
    assert witness("SAVE-07", *workers(2), alloc(16), alloc(1, step=2), alloc(0, step=3), alloc(16, engine=2)) == 2
    assert witness("SAVE-07", *workers(1), alloc(16)) == 0
