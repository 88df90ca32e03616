"""A run as text for a terminal, a log file or a narrow window."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvconform.baseline import Entry
from kvconform.coverage_report import coverage_lines
from kvconform.report.levels import CORE, NONE, STRICT, Level
from kvconform.report.model import NOT_RUN_WORD, RuleLine, RunReport, TargetReport
from kvconform.verdicts import RuleVerdict, Verdict

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_LABELS = {
    Verdict.PASS: ("PASS", "green"),
    Verdict.FAIL: ("FAIL", "bold red"),
    Verdict.WARN: ("WARN", "yellow"),
    Verdict.NOT_APPLICABLE: ("N/A", "dim"),
    Verdict.INCONCLUSIVE: ("INCONCLUSIVE", "magenta"),
    Verdict.TIMEOUT: ("TIMEOUT", "bold red"),
    Verdict.CRASH: ("CRASH", "bold red"),
    Verdict.KIT_ERROR: ("KIT ERROR", "bold red"),
}
#: Of lines that have no verdict, or one that is excused.
_OTHER_LABELS = {
    "known failure": ("KNOWN", "yellow"),
    "flaky": ("FLAKY", "yellow"),
    NOT_RUN_WORD: ("NOT RUN", "magenta"),
}
#: Narrower windows get lines of this width all the same.
_MIN_WIDTH = 40
_MAX_TESTS = 3
_MAX_REASONS = 3
_MAX_LACKING = 5
#: Characters of a reason that is repeated rather than referred to.
_SHORT_REASON = 60
_ASCII = str.maketrans(
    {"…": "...", "–": "-", "—": "-", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "≠": "!=", "“": '"', "”": '"', "’": "'"}
)


def render(report: RunReport, *, width: int, color: bool) -> str:
    """The report as text, without a final newline.

    Args:
        report: what to show.
        width: columns of the window.
        color: whether ANSI colours may be used; without them the text is pure ASCII.
    """
    # Imported late: whoever only collects results shouldn't pay for it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=max(width, _MIN_WIDTH),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for target in report.targets:
        if target.target in report.unusable and target.counts().keys() == {NOT_RUN_WORD}:
            # Why not is said below; a list of all rules would bury it.
            continue
        console.print(Text(target.target or "Tests without a target", style="bold"))
        reasons: dict[tuple[str, ...], str] = {}
        for chapter in target.chapters:
            console.print(Text(f"\n{chapter.title}"))
            table = Table.grid(padding=(0, 1, 0, 1))
            table.add_column(no_wrap=True, min_width=12)
            table.add_column(no_wrap=True)
            table.add_column(overflow="fold")
            for line in chapter.lines:
                label, style = _OTHER_LABELS.get(line.word) or _LABELS[line.verdict.verdict]
                table.add_row(Text(label, style), Text(line.verdict.rule), Text("\n".join(_details(line, reasons))))
            console.print(table)
        if target.capabilities:
            console.print(Text("\nCapabilities"))
            console.print(_capabilities(target))
        if target.coverage is not None:
            console.print(Text("\nCoverage of the connector's code"))
            for text in coverage_lines(target.coverage):
                console.print(Text(f" {text}"))
        console.print(Text(f"\n{_counts(target)}"))
        if target.level is not None:
            console.print(_level(target.level))
        console.print()
    for target_id, words in report.not_set_up.items():
        console.print(Text.assemble(("NOT SET UP ", "bold red"), f"{target_id}: {words}"))
    for spec, sentence in report.unusable.items():
        console.print(
            Text.assemble(("NOT TESTED ", "bold red"), sentence if spec in sentence else f"{spec}: {sentence}")
        )
    if report.excused:
        by = f"excused by {report.baseline_file}: {', '.join(report.excused)}"
        console.print(Text.assemble(("PARTIAL ", "bold yellow"), by))
    for problem in report.baseline_problems:
        console.print(Text.assemble(("BASELINE ", "bold red"), problem))
    for sentence in report.baseline_not_tried:
        console.print(Text.assemble(("BASELINE ", "bold yellow"), sentence))
    console.print(Text(report.environment))
    for sentence in report.trials:
        console.print(Text(sentence))
    if report.spent:
        console.print(Text(report.spent))
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())
    return text if color else text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def _capabilities(target: TargetReport) -> Table:
    """Declared, detected and exercised, side by side."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 1))
    for row in target.capabilities:
        style = "yellow" if row.declared and not row.exercised else ""
        seen = f"seen {row.exercised} times" if row.exercised else "never seen"
        table.add_row(row.name, f"[{style}]{row.state}[/]" if style else row.state, seen, row.detected)
    return table


def _level(level: Level) -> Text:
    """The level, and what is lacking for the next one."""
    from rich.text import Text

    style = "bold red" if level.name == NONE else "bold green"
    text = Text.assemble("Level: ", (str(level), style), f" (of {level.required} required rules)")
    if level.lacking:
        more = len(level.lacking) - _MAX_LACKING
        some = ", ".join(level.lacking[:_MAX_LACKING]) + (f" and {more} more" if more > 0 else "")
        text.append(f"; for {CORE if level.name == NONE else STRICT} it lacks: {some}")
    return text


def _details(line: RuleLine, reasons: dict[tuple[str, ...], str]) -> Iterator[str]:
    """The rule's sentence, then what the verdict rests on.

    ``reasons`` holds what was missing for the target's earlier rules, so that a reason of many rules is told once.
    """
    verdict = line.verdict
    if line.sentence:
        yield line.sentence
    if line.excuse is not None:
        yield from _excused(line, line.excuse)
    elif line.not_run:
        return
    elif verdict.verdict is Verdict.PASS:
        yield f"witnessed: {_witnesses(verdict)}"
    elif verdict.verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE):
        first = reasons.setdefault(verdict.messages, verdict.rule)
        if first != verdict.rule and sum(map(len, verdict.messages)) > _SHORT_REASON:
            yield f"for the reason given at {first}"
        else:
            yield from verdict.messages[:_MAX_REASONS]
            if len(verdict.messages) > _MAX_REASONS:
                yield f"and {len(verdict.messages) - _MAX_REASONS} more reasons of this kind"
    elif verdict.verdict is Verdict.WARN:
        # The tests of a SHOULD do not fail, so this is the only place for their texts.
        for message in verdict.messages:
            yield from message.splitlines()
        yield f"test: {_tests(verdict)}"
    else:
        # Most texts stand under FAILURES; one found by a test that is about other rules is shown here, once.
        if not line.told and verdict.messages:
            yield from verdict.messages[0].splitlines()
        yield f"test: {_tests(verdict)}"
        yield f"more: kvconform explain {verdict.rule}"


def _excused(line: RuleLine, excuse: Entry) -> Iterator[str]:
    yield f"{line.verdict.verdict.value} in this run; {excuse.kind}: {excuse.reason} ({excuse.link})"
    if line.verdict.verdict is not Verdict.PASS:
        yield f"test: {_tests(line.verdict)}"
        yield f"more: kvconform explain {line.verdict.rule}"


def _witnesses(verdict: RuleVerdict) -> str:
    return ", ".join(f"{count} {what}" for what, count in verdict.witnesses.items() if count > 0)


def _tests(verdict: RuleVerdict) -> str:
    nodeids = list(dict.fromkeys(result.nodeid for result in verdict.deciding if result.nodeid))
    more = f" and {len(nodeids) - _MAX_TESTS} more" if len(nodeids) > _MAX_TESTS else ""
    return ", ".join(nodeids[:_MAX_TESTS]) + more


def _counts(target: TargetReport) -> str:
    counts = target.counts()
    total = sum(counts.values())
    parts = ", ".join(f"{count} {word}" for word, count in counts.items())
    used = f" (settings of the preset for {target.preset})" if target.preset else ""
    return f"{total} rule{'s' if total != 1 else ''}: {parts}{used}"
