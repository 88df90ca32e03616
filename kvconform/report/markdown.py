"""The report as Markdown for the summary page of a CI job (GitHub, GitLab)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvconform.bench.figures import Measurement
from kvconform.report.bench_section import MARK, intro, remarks, tables
from kvconform.report.document import (
    BAD,
    FLAKY,
    KNOWN,
    VERDICTS,
    Document,
    RuleEntry,
    TargetEntry,
    count_verdicts,
    headline,
    plural,
)
from kvconform.report.visible import visible

_ICONS = {
    "pass": "✅", "fail": "❌", "crash": "💥", "timeout": "⏱️", "kit error": "🛠️", "warn": "⚠️",
    "known failure": "🔖", "flaky": "🎲",
    "inconclusive": "❔", "not applicable": "➖", "not run": "⏸️", "unchecked": "▫️",
}  # fmt: skip
#: A CI job's page holds about a megabyte.
MAX_TEXT, MAX_TEXTS = 6_000, 40
_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$<>&])")
#: Pages turn "@name", "#12" and addresses into links, escaped or not; a blank without width prevents it.
_LINKS = re.compile(r"([@#]|:(?=//))")


def render(document: Document) -> str:
    """The page's text, with a final newline."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    environment, run = document.environment, document.run
    yield "## KV connector conformance"
    yield ""
    yield (
        f"kvconform {document.kit.version}, {document.driven_by}, Python {environment.python}; "
        f"{plural(run.tests.ran, 'test')}, pytest's exit status {run.exit_status}"
    )
    yield ""
    for unusable in document.unusable:
        yield f"**Not tested:** {escape(unusable.target)}: {escape(unusable.sentence)}"
        yield ""
    if run.partial:
        yield "**Partial run:**"
        yield ""
        yield from (f"- {escape(reason.sentence)}" for reason in run.partial_reasons)
        yield ""
    for problem in run.baseline.problems if run.baseline is not None else ():
        yield f"**The baseline does not fit:** {escape(problem)}"
        yield ""
    if run.baseline is not None and run.baseline.not_tried:
        yield "**In the baseline, and not tried:**"
        yield ""
        yield from (f"- {escape(sentence)}" for sentence in run.baseline.not_tried)
        yield ""
    for target in document.targets:
        if target.not_set_up:
            yield f"**Not set up:** {escape(target.id)}: {escape(target.not_set_up)}"
            yield ""
    sections = [(target.id, target.entries) for target in document.targets]
    if document.without_target:
        sections.append(("Tests without a connector", document.without_target))
    sentences = {rule.id: rule.sentence for rule in document.rules}
    for title, entries in sections:
        yield from _section(title, entries, sentences)
    for target in document.targets:
        yield from _standing(target)
    for target in document.targets:
        if target.bench is not None:
            yield from _bench(target.id, target.bench)


def _standing(target: TargetEntry) -> Iterator[str]:
    """The level, and the table of capabilities."""
    yield f"**Level of {escape(target.id)}: {target.level}** ({plural(target.level.required, 'required rule')})"
    yield ""
    for sentence in target.trials:
        yield f"- It {escape(sentence)}."
    if target.trials:
        yield ""
    if target.capabilities:
        yield "| capability | state | seen at work | declared |"
        yield "|---|---|---|---|"
        for row in target.capabilities:
            yield f"| {row.name} | {row.state} | {row.exercised} | {'yes' if row.declared else 'no'} |"
        yield ""


def _bench(target: str, bench: Measurement) -> Iterator[str]:
    """Bandwidth and the cost of a step; the hooks one by one are folded away."""
    yield f"### Speed of {escape(target)}"
    yield ""
    yield "For information: no verdict rests on it."
    yield from (escape(line) for line in intro(bench))
    yield ""
    found = tables(bench)
    for number, table in enumerate(found):
        if number == 2:
            yield "<details><summary>Scheduler-side hooks, one by one</summary>"
            yield ""
        yield f"**{escape(table.caption)}**"
        yield ""
        yield f"| {' | '.join(map(escape, table.head))} |"
        yield f"|{'---|' * table.names}{'---:|' * (len(table.head) - table.names)}"
        yield from (f"| {' | '.join(map(escape, row))} |" for row in table.rows)
        yield ""
    if len(found) > 2:
        yield "</details>"
        yield ""
    notes = [*([MARK] if found else []), *remarks(bench)]
    yield from (f"- {escape(note)}" for note in notes)
    if notes:
        yield ""


def _section(title: str, entries: tuple[RuleEntry, ...], sentences: dict[str, str]) -> Iterator[str]:
    counts = count_verdicts(entries)
    yield f"### {escape(title)}"
    yield ""
    yield f"**{headline(counts)}**"
    yield ""
    yield "| " + " | ".join(f"{_ICONS[verdict]} {verdict}" for verdict in counts) + " |"
    yield "|" + "---|" * len(counts)
    yield "| " + " | ".join(map(str, counts.values())) + " |"
    yield ""
    attention = sorted(
        (entry for entry in entries if entry.verdict in BAD or entry.verdict in (KNOWN, FLAKY, "warn")),
        key=lambda entry: VERDICTS.index(entry.verdict),
    )
    if not attention:
        return
    yield "| verdict | rule | level | what a connector has to keep |"
    yield "|---|---|---|---|"
    for entry in attention:
        sentence = escape(sentences.get(entry.id, "not in the catalogue"))
        if entry.baseline is not None:
            said = f"{entry.baseline.verdict} in this run; {entry.baseline.reason} ({entry.baseline.link})"
            sentence += f" *{escape(said)}*"
        yield f"| {_ICONS[entry.verdict]} {entry.verdict} | {escape(entry.id)} | {entry.level or ''} | {sentence} |"
    yield ""
    for entry in attention[:MAX_TEXTS]:
        yield from _text(entry)
    if len(attention) > MAX_TEXTS:
        yield f"The texts of {len(attention) - MAX_TEXTS} more rules are in the report."
        yield ""


def _text(entry: RuleEntry) -> Iterator[str]:
    if not entry.messages:
        return
    text = visible(entry.messages[0]).rstrip()
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n[... {len(text) - MAX_TEXT:,} characters cut ...]"
    more = len(entry.messages) - 1 + entry.messages_cut
    # Longer than any run of backticks in the text, so that the text can't end the block.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield f"<details><summary>{_html(entry.id)}: {entry.verdict}</summary>"
    yield ""
    yield f"{fence}text"
    yield text
    yield fence
    if more:
        yield f"and {plural(more, 'more text')} in the report"
    yield ""
    yield "</details>"
    yield ""


def escape(text: str) -> str:
    """A text on one line that Markdown shows as it is: no markup, no mention, no link."""
    return _LINKS.sub("\\1\u200b", _SPECIAL.sub(r"\\\1", " ".join(visible(text).split())))


def _html(text: str) -> str:
    return visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
