"""The report as one HTML page: no network access, and whatever a connector says is only ever text.

Escaping is the template engine's (autoescape), and a content security policy with the hash of the page's own script
makes sure that no other script runs even if something slipped through.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from kvconform.coverage_report import coverage_lines
from kvconform.picture import STATES, WRONG_KINDS, Picture, Segment, about_group, blocks_of, title_of
from kvconform.report.bench_plot import plot
from kvconform.report.bench_section import MARK, charts, intro, remarks, tables
from kvconform.report.document import (
    BAD,
    FLAKY,
    KNOWN,
    UNCHECKED,
    VERDICTS,
    Document,
    RuleEntry,
    RuleInfo,
    TargetEntry,
    headline,
    plural,
)
from kvconform.report.visible import visible

#: Texts of one rule that are open to see; the others are folded away.
OPEN_MESSAGES = 2
#: Rules listed in the summary of a target.
MAX_FIRST = 12
OTHER_CHAPTER = "Rules that are not in the catalogue"

#: What a verdict means, for who has never read the guide.
MEANINGS = {
    "pass": "what the rule is about happened, and the rule was kept each time",
    "fail": "the rule was broken",
    "warn": "a rule that a connector SHOULD keep was broken",
    "not applicable": "the connector does not claim it or refuses this set-up, the engine lacks it, or another vLLM "
    "release has the rule",
    "inconclusive": "what the rule is about did not happen, so nothing was shown",
    "timeout": "a scenario did not end in time",
    "crash": "a process ended during a scenario",
    "known failure": "the rule was broken, and the project's baseline knows of it",
    "flaky": "the project's baseline says that the rule may fail or pass",
    "kit error": "the kit itself failed; the connector is neither accused nor cleared",
    "not run": "tests check the rule, and none of them ran",
    UNCHECKED: "no test of this kvconform checks the rule",
}

#: How the paragraphs of kvconform.report.failure_text begin.
_LABEL = re.compile(
    r"^ *(?P<label>Expected|Observed|Why it matters|How to fix|Source|More|Contrast|Scenario|What happened|Reproduce):"
)


@dataclass(frozen=True)
class _Rule:
    """One rule of one target, as the template shows it."""

    entry: RuleEntry
    info: RuleInfo | None
    anchor: str

    @property
    def kind(self) -> str:
        return self.entry.verdict.replace(" ", "-")

    @property
    def is_bad(self) -> bool:
        return self.entry.verdict in BAD

    @property
    def witnesses(self) -> str:
        return ", ".join(f"{count:,} {what}" for what, count in self.entry.witnesses.items())


@dataclass(frozen=True)
class _Chapter:
    id: str
    title: str
    rules: tuple[_Rule, ...]


@dataclass(frozen=True)
class _Target:
    """One connector, or the tests without one."""

    title: str
    entry: TargetEntry | None
    counts: dict[str, int]
    chapters: tuple[_Chapter, ...]

    @property
    def headline(self) -> str:
        return headline(self.counts)

    @property
    def not_set_up(self) -> str:
        return self.entry.not_set_up if self.entry is not None else ""

    @property
    def is_bad(self) -> bool:
        return bool(self.not_set_up) or any(verdict in BAD for verdict in self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def first(self) -> tuple[_Rule, ...]:
        """The rules to look at first."""
        found = [rule for chapter in self.chapters for rule in chapter.rules if rule.is_bad]
        mild = (KNOWN, FLAKY, "warn")
        found += [rule for chapter in self.chapters for rule in chapter.rules if rule.entry.verdict in mild]
        return tuple(found)

    @property
    def options(self) -> str:
        if self.entry is None:
            return ""
        options = self.entry.options
        shown = {"kv_connector_extra_config": options.kv_connector_extra_config, "env": options.env}
        return json.dumps({key: value for key, value in shown.items() if value}, indent=2, ensure_ascii=False)


def render(document: Document) -> str:
    """The page."""
    script = _resource("report.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    chapters = {chapter.id: chapter.title for chapter in document.chapters}
    targets = list(_targets(document))
    counts = document.counts()
    text: str = _template().render(
        document=document,
        targets=targets,
        chapters=[(c, t) for c, t in chapters.items() if any(c == x.id for target in targets for x in target.chapters)],
        verdicts=[(v, v.replace(" ", "-"), counts[v], MEANINGS[v]) for v in VERDICTS if v in counts],
        script=script,
        style=_resource("report.css"),
        script_hash=f"sha256-{digest}",
        max_first=MAX_FIRST,
        open_messages=OPEN_MESSAGES,
    )
    return text


@cache
def _template() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_resource),
    )
    environment.filters.update(
        coverage_lines=coverage_lines,
        bench_plots=lambda bench: [plot(chart) for chart in charts(bench)],
        bench_tables=tables,
        bench_intro=intro,
        bench_remarks=remarks,
        visible=visible,
        labelled=labelled,
        plural=plural,
        seconds=_seconds,
        picture_title=title_of,
        about_group=about_group,
        blocks_of=lambda group, picture: blocks_of(picture, group),
        segment_words=segment_words,
        states_of=_states_of,
        kind_words=lambda wrong: WRONG_KINDS.get(wrong.kind, ""),
    )
    environment.globals.update(doubtful_mark=MARK)
    return environment.get_template("report.html.jinja")


@cache
def _resource(name: str) -> str:
    return (resources.files("kvconform.report") / name).read_text(encoding="utf-8")


def _targets(document: Document) -> Iterator[_Target]:
    for number, target in enumerate(document.targets):
        yield _Target(target.id, target, target.counts(), _chapters(document, target.entries, f"c{number}"))
    if document.without_target:
        counts: dict[str, int] = {}
        for entry in document.without_target:
            counts[entry.verdict] = counts.get(entry.verdict, 0) + 1
        chapters = _chapters(document, document.without_target, "own")
        yield _Target("Tests without a connector", None, counts, chapters)


def _chapters(document: Document, entries: tuple[RuleEntry, ...], prefix: str) -> tuple[_Chapter, ...]:
    infos = {rule.id: rule for rule in document.rules}
    rules = [_Rule(entry, infos.get(entry.id), f"{prefix}-{number}") for number, entry in enumerate(entries)]
    found = [
        _Chapter(
            chapter.id, chapter.title, tuple(r for r in rules if r.info is not None and r.info.chapter == chapter.id)
        )
        for chapter in document.chapters
    ]
    found.append(_Chapter("", OTHER_CHAPTER, tuple(rule for rule in rules if rule.info is None)))
    return tuple(chapter for chapter in found if chapter.rules)


def labelled(text: str) -> list[tuple[str, str, str]]:
    """Lines of a failure text as (indent, label, rest), so that the labels can stand out."""
    lines = []
    for line in visible(text).split("\n"):
        match = _LABEL.match(line)
        label = match["label"] if match else ""
        start = line.index(label) if label else 0
        end = start + len(label) + 1 if label else 0
        lines.append((line[:start], line[start:end], line[end:]))
    return lines


def segment_words(segment: Segment, picture: Picture) -> str:
    """What a segment of a block shows, for a pointer that rests on it."""
    word = "tokens" if picture.kind == "block table" else "slots"
    wrong = f"; wrong: {segment.wrong.what}" if segment.wrong is not None else ""
    return f"{word} {segment.first}-{segment.last}: {STATES[segment.state]}{wrong}"


def _states_of(picture: Picture) -> list[tuple[str, str]]:
    """The states that a picture shows, for its key."""
    shown = {state for group in picture.groups for block in blocks_of(picture, group) for state in block.states}
    return [(state, words) for state, words in STATES.items() if state in shown]


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
