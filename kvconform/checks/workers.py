"""TP: several workers report for one engine, and vLLM counts their votes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kvconform.checks.asynchronous_lives import REPORT_HOOKS, is_report, reported
from kvconform.checks.model import Check, Finding, no_finding
from kvconform.engine.events import EngineRaised, HookCall, NeverIdle, ReportsMerged, ReportTested, StoreBroken
from kvconform.engine.history import History

_KINDS = ("finished_sending", "finished_recving")


@dataclass
class _Votes:
    """An engine's workers, the call that gave it a count, and who voted for what."""

    workers: int = 0
    counted: HookCall | None = None
    ranks: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    last: dict[tuple[str, str], HookCall] = field(default_factory=dict)


def _votes(history: History) -> dict[int, _Votes]:
    engines: dict[int, _Votes] = defaultdict(_Votes)
    for call in history.calls("register_kv_caches", "get_finished_count", *REPORT_HOOKS):
        votes = engines[call.engine]
        if call.hook == "register_kv_caches":
            votes.workers = max(votes.workers, call.rank + 1)
        elif call.hook == "get_finished_count":
            votes.counted = call if isinstance(call.result, int) and call.result else None
        elif is_report(history, call):
            for kind in _KINDS:
                for request in reported(call, kind):
                    votes.ranks[kind, request].add(call.rank)
                    votes.last[kind, request] = call
    return engines


def _wrong_count(history: History) -> Iterator[Finding]:
    stuck = {event.engine: event for event in history.of(NeverIdle)}
    for engine, votes in _votes(history).items():
        if votes.workers < 2 or votes.counted is None:
            continue
        count: int = votes.counted.result
        if count > votes.workers:
            observed = f"get_finished_count returned {count} for {votes.workers} workers"
            yield Finding("TP-01", "at most the number of workers", observed, votes.counted)
            continue
        for (kind, request), ranks in votes.ranks.items():
            too_many = len(ranks) > count
            too_few = len(ranks) < count and engine in stuck and request in stuck[engine].unfinished
            if too_many or too_few:
                names = ", ".join(map(str, sorted(ranks)))
                died = [event for event in history.of(EngineRaised) if event.engine == engine]
                yield Finding(
                    "TP-01",
                    "get_finished_count returns how many workers report each completion, or None for all",
                    f"it returned {count}; {request} was reported as {kind} by the workers of rank {names}",
                    died[0] if died and too_many else votes.last[kind, request],
                    requests=(request,),
                )
                break


def _counted(history: History) -> Mapping[str, int]:
    engines = [votes for votes in _votes(history).values() if votes.workers > 1]
    return {"completions voted for by several workers": sum(len(votes.ranks) for votes in engines)}


def _stats_types(history: History) -> dict[tuple[int, int], dict[str, int]]:
    """By (engine, step): the classes of the workers' statistics, and a rank that returned one."""
    kinds: dict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for call in history.calls("get_kv_connector_stats"):
        if call.role == "worker" and isinstance(call.result, str):
            kinds[call.engine, call.step][call.result] = call.rank
    return kinds


def _mixed_stats(history: History) -> Iterator[Finding]:
    kinds = _stats_types(history)
    for call in history.calls("get_kv_connector_stats"):
        seen = kinds.get((call.engine, call.step), {})
        if len(seen) > 1 and call.role == "worker":
            observed = " and ".join(f"{kind} from rank {rank}" for kind, rank in seen.items())
            yield Finding("TP-04", "statistics of one class from all workers", observed, call)
            return


def _stats(history: History) -> Mapping[str, int]:
    ranks: dict[tuple[int, int], set[int]] = defaultdict(set)
    for call in history.calls("get_kv_connector_stats"):
        if call.role == "worker" and call.result is not None:
            ranks[call.engine, call.step].add(call.rank)
    return {"steps with statistics of several workers": sum(len(each) > 1 for each in ranks.values())}


def _bad_merges(history: History) -> Iterator[Finding]:
    for event in history.of(ReportsMerged):
        if event.problem:
            expected = "aggregate returns one object with everything that both workers reported"
            yield Finding("TP-05", expected, event.problem, event)
            return


def _merges(history: History) -> Mapping[str, int]:
    return {"worker metadata of two workers aggregated": sum(1 for _ in history.of(ReportsMerged))}


def _false_reports(history: History) -> Iterator[Finding]:
    for event in history.of(ReportTested):
        if event.lost:
            yield Finding(
                "TP-10",
                "a report that carries something is true",
                f"the {event.what} of rank {event.rank} are false and hold {event.lost}",
                event,
            )
            return


def _tested(history: History) -> Mapping[str, int]:
    return {"reports tested": sum(1 for _ in history.of(ReportTested))}


def _several(history: History) -> set[int]:
    return {call.engine for call in history.calls("register_kv_caches") if call.rank > 0}


def _broken_shards(history: History) -> Mapping[str, int]:
    broken = [event for event in history.of(StoreBroken) if event.kind == "data" and event.engine in _several(history)]
    return {"files of several workers' shards removed": sum(event.files for event in broken)}


def _shards_compared(history: History) -> Mapping[str, int]:
    several = _several(history)
    loads = history.calls("update_state_after_alloc")
    return {
        "loads by several workers": sum(
            call.args["num_external_tokens"] > 0 for call in loads if call.engine in several
        )
    }


CHECKS = (
    Check("TP-01", _wrong_count, _counted, "no completion was reported by several workers"),
    Check("TP-04", _mixed_stats, _stats, "no step in which several workers returned statistics"),
    Check("TP-05", _bad_merges, _merges, "no step in which several workers returned metadata"),
    Check("TP-10", _false_reports, _tested, "no statistics, events or metadata were returned by a worker"),
    Check("TP-11", no_finding, _broken_shards, "the connector keeps no files that could be removed"),
    Check("SAVE-07", no_finding, _shards_compared, "no load was made by several workers"),
)
