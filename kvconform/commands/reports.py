"""``kvconform report``, ``verify`` and ``diff``: from reports of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from kvconform.commands.output import make_console, terminal_text, write
from kvconform.errors import UsageError
from kvconform.rules import load_catalogue

if TYPE_CHECKING:
    from kvconform.report.compare import Comparison
    from kvconform.report.document import Document

_KIND_STYLES = {"worse": "bold red", "better": "green", "changed": "yellow", "new": "cyan", "gone": "dim"}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--html", "html_file", metavar="OUT", type=click.Path(path_type=Path), help="A page for people.")
@click.option(
    "--markdown", "markdown_file", metavar="OUT", type=click.Path(path_type=Path), help="For a CI job's page."
)
@click.option(
    "--badge",
    "badge_files",
    metavar="OUT",
    multiple=True,
    type=click.Path(path_type=Path),
    help="OUT.svg is a picture, OUT.json is for shields.io's endpoint badge; may be given twice.",
)
def report(file: Path, html_file: Path | None, markdown_file: Path | None, badge_files: tuple[Path, ...]) -> None:
    """Show a report that pytest --kvconform-report=FILE wrote, and make other forms of it.

    OUT is a file that is written anew, or - for the standard output.
    """
    from kvconform.report import badge, html, markdown

    for badge_file in badge_files:
        if badge_file.suffix.lower() not in (".svg", ".json"):
            raise UsageError(f"--badge {badge_file}: expected OUT.svg or OUT.json.")
    document = _read_report(file)
    if html_file is not None:
        write(html_file, html.render(document))
    if markdown_file is not None:
        write(markdown_file, markdown.render(document))
    for badge_file in badge_files:
        write(badge_file, badge.svg(document) if badge_file.suffix.lower() == ".svg" else badge.endpoint(document))
    if html_file is None and markdown_file is None and not badge_files:
        _print_headlines(document)


@click.command()
@click.argument("file", metavar="REPORT", type=click.Path(path_type=Path))
def verify(file: Path) -> int:
    """Check a REPORT: unchanged, complete for its vLLM release, and without contradictions.

    Exit code 0 for a report that is accepted, 1 for one that is refused. A partial report is accepted and called so.
    """
    from kvconform.collection import suites_directory
    from kvconform.report.json_report import ReportError, read_data
    from kvconform.report.suite_tests import checked_rules
    from kvconform.report.verify import verify as check

    if not file.is_file():
        raise UsageError(f"{file}: there is no such file; give the path of a report.")
    try:
        found = check(read_data(file), load_catalogue(), checked_rules(suites_directory()))
    except ReportError as error:
        click.echo(f"REFUSED {error}")
        return 1
    for problem in found.problems:
        click.echo(f"REFUSED {file}: {terminal_text(problem)}")
    if found.problems or found.document is None:
        return 1
    partial = ", but partial" if found.document.run.partial else ""
    click.echo(
        f"ACCEPTED {file}: unchanged and complete{partial}. It says what a run said; it does not say who ran it."
    )
    for note in found.notes:
        click.echo(terminal_text(note))
    _print_headlines(found.document, with_reasons=False)
    return 0


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object.")
def diff(before: Path, after: Path, as_json: bool) -> int:
    """What got better and what got worse from report BEFORE to report AFTER.

    Exit code 1 if something got worse, otherwise 0.
    """
    from kvconform.report.compare import compare

    found = compare(_read_report(before), _read_report(after))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_comparison(found)
    return int(found.got_worse)


def _read_report(file: Path) -> Document:
    from kvconform.report.json_report import ReportError, read

    try:
        return read(file)
    except ReportError as error:
        raise UsageError(str(error)) from error


def _print_headlines(document: Document, *, with_reasons: bool = True) -> None:
    """One line per connector, and why the run is partial."""
    from kvconform.report.document import count_verdicts, headline

    sections = [(target.id, target.counts()) for target in document.targets]
    if document.without_target:
        sections.append(("tests without a connector", count_verdicts(document.without_target)))
    for title, counts in sections:
        click.echo(f"{terminal_text(title)}: {headline(counts)}.")
        click.echo("  " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if with_reasons:
        for target in document.targets:
            if target.not_set_up:
                click.echo(f"Not set up: {terminal_text(f'{target.id}: {target.not_set_up}')}")
        for unusable in document.unusable:
            click.echo(f"Not tested: {terminal_text(f'{unusable.target}: {unusable.sentence}')}")
        for reason in document.run.partial_reasons:
            click.echo(f"Partial: {terminal_text(reason.sentence)}.")


def _print_comparison(found: Comparison) -> None:
    from kvconform.report.compare import KINDS

    console = make_console()
    with console.capture() as capture:
        for note in found.notes:
            console.print(Text(terminal_text(note), style="yellow"))
        for target in dict.fromkeys(change.target for change in found.changes):
            console.print(Text(terminal_text(target), style="bold"))
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for name in ("", "rule", "level", "before", "after"):
                table.add_column(name, no_wrap=True)
            for change in found.changes:
                if change.target == target:
                    table.add_row(
                        Text(change.kind, style=_KIND_STYLES[change.kind]),
                        Text(terminal_text(change.rule) or "(all)"),
                        change.level or "",
                        change.before or "not there",
                        change.after or "not there",
                    )
            console.print(table)
        counts = [f"{len(found.of(kind))} {kind}" for kind in KINDS if found.of(kind)]
        console.print(Text(", ".join([*counts, f"{found.same} the same"]) + "."))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    click.echo("\n".join(line for line in lines if line))
