"""MATCH: keys that tell apart what only looks alike. Findings come by contrast; here is what has to have been tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvconform.checks.loads import block_sizes
from kvconform.checks.model import BEFORE, Check, Finding, no_finding
from kvconform.checks.transfer import external_tokens
from kvconform.engine.byte_events import Compared
from kvconform.engine.events import ProgramAction
from kvconform.engine.history import History

if TYPE_CHECKING:
    from kvconform.isolation.reopening import Reopened


@dataclass(frozen=True)
class _Asked:
    """A request for which the connector answered at least one query."""

    engine: int
    request: str
    tokens: tuple[int, ...]
    identity: str
    set_up: str
    embeds: bool
    queries: int


def _asked(history: History) -> list[_Asked]:
    queries: dict[tuple[int, str], int] = {}
    for call in history.calls("get_num_new_matched_tokens"):
        key = (call.engine, call.args["request"])
        queries[key] = queries.get(key, 0) + (call.error is None)
    asked = []
    for event in history.of(ProgramAction):
        if event.action == "add" and queries.get((event.engine, event.detail["request"])):
            detail = event.detail
            asked.append(
                _Asked(
                    event.engine,
                    detail["request"],
                    tuple(detail.get("tokens", ())),
                    detail.get("identity", ""),
                    detail.get("set_up", ""),
                    bool(detail.get("embeds")),
                    queries[event.engine, detail["request"]],
                )
            )
    return asked


def _look_alike(one: _Asked, other: _Asked, block: int) -> bool:
    """Whether a block of the same tokens at the same place stands for other KV in the two requests."""
    for start in range(0, len(one.tokens) - block + 1, block):
        same = one.tokens[start : start + block] == other.tokens[start : start + block]
        if same and (one.identity != other.identity or one.tokens[:start] != other.tokens[:start]):
            return True
    return False


def _pairs(history: History) -> Iterator[tuple[_Asked, _Asked]]:
    """Every request with each earlier one."""
    asked = history.derived(_asked)
    for index, later in enumerate(asked):
        for earlier in asked[:index]:
            yield earlier, later


def _alike_in_part(history: History) -> Mapping[str, int]:
    # Where nothing is ever loaded, nothing shows that there was a key to find.
    if not external_tokens(history):
        return {}
    count = sum(
        earlier.set_up == later.set_up and _look_alike(earlier, later, block_sizes(history, later.engine)[0])
        for earlier, later in _pairs(history)
    )
    return {"pairs of requests that only look alike": count}


def _other_set_up(history: History) -> Mapping[str, int]:
    if not external_tokens(history):
        return {}
    count = sum(
        earlier.set_up != later.set_up and earlier.tokens[:1] == later.tokens[:1] for earlier, later in _pairs(history)
    )
    return {"prompts stored by an engine of another set-up": count}


def _without_local_cache(history: History) -> Mapping[str, int]:
    without = {
        (event.engine, event.detail["request"])
        for event in history.of(ProgramAction)
        if not event.detail.get("local_cache", True)
    }
    compared = {
        (event.engine, event.request): event.external_tokens
        for event in history.of(Compared)
        if event.external_tokens and (event.engine, event.request) in without
    }
    return {"external tokens of engines without prefix caching": sum(compared.values())}


def _embeds(history: History) -> Mapping[str, int]:
    return {"queries for prompts of embeddings": sum(a.queries for a in history.derived(_asked) if a.embeds)}


CHECKS = (
    Check("MATCH-17", no_finding, _alike_in_part, "no two requests looked alike, or nothing was loaded beside them"),
    Check("MATCH-18", no_finding, _other_set_up, "no engine of another set-up asked for what one had stored"),
    Check("MATCH-20", no_finding, _without_local_cache, "nothing was loaded by an engine without prefix caching"),
    Check("MATCH-25", no_finding, _embeds, "no prompt was given as embeddings"),
)


def found_again(reopened: Reopened) -> tuple[tuple[Finding, ...], Mapping[str, Mapping[str, int]], str]:
    """Findings and witnesses of SAVE-18, and what was lacking, for a store that other processes have opened."""
    witnesses = {"SAVE-18": {"tokens found by a process with another hash seed": reopened.otherwise}}
    lacking = reopened.obstacle or "nothing of what one process had stored was found by another one"
    if reopened.otherwise or not reopened.forked:
        return (), witnesses, lacking
    finding = Finding(
        "SAVE-18",
        "what a process has stored is found by every later one with the same model and configuration",
        f"a process with the same seed of Python's hash() loaded {reopened.forked} tokens; one with another seed, and "
        "with addresses of its own, was offered none of them",
        BEFORE,
    )
    return (finding,), witnesses, lacking
