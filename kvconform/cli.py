"""The console command ``kvconform``. Imports neither torch nor vllm.

A new command is a function decorated with ``@main.command()``. Whatever is wrong with the user's input ends
with one sentence on stderr and exit code 4, as in pytest.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvconform import __version__
from kvconform.errors import UsageError
from kvconform.rules import CAPABILITIES, CHAPTERS, LEVELS, Catalogue, Rule, UnknownRuleError, load_catalogue

if TYPE_CHECKING:
    from kvconform.report.compare import Comparison
    from kvconform.report.document import Document

USAGE_EXIT_CODE = 4

#: Columns where the output goes to a file or a pipe, which has no width of its own.
_WIDTH_WITHOUT_TERMINAL = 160

_KIND_STYLES = {"worse": "bold red", "better": "green", "changed": "yellow", "new": "cyan", "gone": "dim"}
_LEVEL_STYLES = {"MUST": "bold red", "SHOULD": "yellow", "MAY": "cyan"}


class _Commands(click.Group):
    """A group whose usage errors end with exit code 4 instead of click's 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = partial(super().main, args, prog_name, complete_var, **extra)
        if not standalone_mode:
            return run(standalone_mode=False)
        try:
            code: Any = run(standalone_mode=False)
        except click.UsageError as error:
            error.show()
            sys.exit(USAGE_EXIT_CODE)
        except UsageError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(USAGE_EXIT_CODE)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Aborted.", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="kvconform")
def main() -> None:
    """Conformance kit for vLLM KV connectors.

    The tests themselves run in pytest: pytest --kvconform=my.module:MyConnector
    """


@main.command()
@click.argument("rule_id", metavar="RULE")
def explain(rule_id: str) -> None:
    """Everything about one RULE, e.g. MATCH-05."""
    catalogue = load_catalogue()
    try:
        rule = catalogue.rule(rule_id)
    except UnknownRuleError as error:
        raise UsageError(str(error)) from error
    _print_rule(rule, catalogue)


@main.command()
@click.option("--chapter", "chapters", multiple=True, type=click.Choice(CHAPTERS, case_sensitive=False))
@click.option("--level", "levels", multiple=True, type=click.Choice(LEVELS, case_sensitive=False))
@click.option("--capability", "capabilities", multiple=True, type=click.Choice(CAPABILITIES, case_sensitive=False))
@click.option("--release", metavar="X.Y.Z", help="Only rules that hold for this vLLM release.")
@click.option("--json", "as_json", is_flag=True, help="Complete rules as a JSON array.")
def rules(
    chapters: tuple[str, ...],
    levels: tuple[str, ...],
    capabilities: tuple[str, ...],
    release: str | None,
    as_json: bool,
) -> None:
    """List the rules. An option given twice means either; different options must all hold."""
    catalogue = load_catalogue()
    try:
        chosen: Iterable[Rule] = catalogue.rules if release is None else catalogue.applicable(release)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    found = [
        rule
        for rule in chosen
        if (not chapters or rule.chapter in chapters)
        and (not levels or rule.level in levels)
        and (not capabilities or rule.capability in capabilities)
    ]
    if as_json:
        click.echo(json.dumps([rule.to_dict() for rule in found], indent=2, ensure_ascii=False))
    else:
        _print_table(found)


@main.command()
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
        _write(html_file, html.render(document))
    if markdown_file is not None:
        _write(markdown_file, markdown.render(document))
    for badge_file in badge_files:
        _write(badge_file, badge.svg(document) if badge_file.suffix.lower() == ".svg" else badge.endpoint(document))
    if html_file is None and markdown_file is None and not badge_files:
        _print_headlines(document)


@main.command()
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
        click.echo(f"REFUSED {file}: {_terminal_text(problem)}")
    if found.problems or found.document is None:
        return 1
    partial = ", but partial" if found.document.run.partial else ""
    click.echo(
        f"ACCEPTED {file}: unchanged and complete{partial}. It says what a run said; it does not say who ran it."
    )
    for note in found.notes:
        click.echo(_terminal_text(note))
    _print_headlines(found.document, with_reasons=False)
    return 0


@main.command()
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


def _write(file: Path, text: str) -> None:
    from kvconform.report.json_report import write_text

    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(f"{file}: it cannot be written: {error.strerror or error}.") from error


def _terminal_text(text: str) -> str:
    """A text out of a report, without what would steer the terminal."""
    from kvconform.report.html import visible

    return " ".join(visible(text).split())


def _print_headlines(document: Document, *, with_reasons: bool = True) -> None:
    """One line per connector, and why the run is partial."""
    from kvconform.report.document import count_verdicts, headline

    sections = [(target.id, target.counts()) for target in document.targets]
    if document.without_target:
        sections.append(("tests without a connector", count_verdicts(document.without_target)))
    for title, counts in sections:
        click.echo(f"{_terminal_text(title)}: {headline(counts)}.")
        click.echo("  " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if with_reasons:
        for target in document.targets:
            if target.not_set_up:
                click.echo(f"Not set up: {_terminal_text(f'{target.id}: {target.not_set_up}')}")
        for unusable in document.unusable:
            click.echo(f"Not tested: {_terminal_text(f'{unusable.target}: {unusable.sentence}')}")
        for reason in document.run.partial_reasons:
            click.echo(f"Partial: {_terminal_text(reason.sentence)}.")


def _print_comparison(found: Comparison) -> None:
    from kvconform.report.compare import KINDS

    console = _console()
    with console.capture() as capture:
        for note in found.notes:
            console.print(Text(_terminal_text(note), style="yellow"))
        for target in dict.fromkeys(change.target for change in found.changes):
            console.print(Text(_terminal_text(target), style="bold"))
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for name in ("", "rule", "level", "before", "after"):
                table.add_column(name, no_wrap=True)
            for change in found.changes:
                if change.target == target:
                    table.add_row(
                        Text(change.kind, style=_KIND_STYLES[change.kind]),
                        Text(_terminal_text(change.rule) or "(all)"),
                        change.level or "",
                        change.before or "not there",
                        change.after or "not there",
                    )
            console.print(table)
        counts = [f"{len(found.of(kind))} {kind}" for kind in KINDS if found.of(kind)]
        console.print(Text(", ".join([*counts, f"{found.same} the same"]) + "."))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    click.echo("\n".join(line for line in lines if line))


def _console() -> Console:
    """A console on the current stdout; colours only where rich sees a terminal."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(file=sys.stdout, width=columns, highlight=False)


def _print_table(found: Sequence[Rule]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    table.add_column("level", no_wrap=True)
    table.add_column("capability", no_wrap=True)
    table.add_column("releases", no_wrap=True)
    table.add_column("what a connector has to keep")
    for rule in found:
        table.add_row(
            rule.id,
            Text(rule.level, style=_LEVEL_STYLES[rule.level]),
            rule.capability,
            _releases(rule),
            Text(rule.sentence),
        )
    console = _console()
    if found:
        console.print(table)
    noun = "rule" if len(found) == 1 else "rules"
    console.print(f"{len(found)} {noun}. 'kvconform explain RULE' tells more about one.")


def _releases(rule: Rule) -> str:
    return f"{rule.since} .. {rule.until}" if rule.until else f"{rule.since} .."


def _print_rule(rule: Rule, catalogue: Catalogue) -> None:
    console = _console()
    last = f"up to {rule.until}" if rule.until else "and later"
    head = Text.assemble(
        (rule.id, "bold"), "  ", (rule.level, _LEVEL_STYLES[rule.level]), f"  vLLM {rule.since} {last}"
    )
    needs = "every connector" if rule.capability == "base" else f"connectors with the capability {rule.capability}"
    console.print(head)
    console.print(Text(f"{catalogue.chapter(rule.chapter).title}; {needs}", style="dim"))
    console.print()
    console.print(Text(rule.sentence, style="bold"))
    for title, text in (
        ("Otherwise", rule.consequence),
        ("How to fix", rule.fix),
        ("Notes", rule.notes),
        ("Not checked by any suite yet", rule.unchecked or ""),
    ):
        if text:
            _print_section(console, title, [text])
    _print_section(console, "Evidence", [str(item) for item in rule.evidence])
    # Other references (R1 to R33) number the defect classes that the kit was built from; they mean nothing here.
    related = [catalogue.rule(other) for other in rule.related if other in catalogue]
    if related:
        _print_section(console, "See also", [f"{other.id}  {other.sentence}" for other in related])


def _print_section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print()
    console.print(Text(title, style="underline"))
    for line in lines:
        console.print(Padding.indent(Text(line), 2))


if __name__ == "__main__":
    main()
